# How Bitcoin Core's kernel is built for the tests. cmake reads it through CMAKE_TOOLCHAIN_FILE, which
# .cargo/config.toml sets, because the crate that builds the kernel hands no options on. Nobody debugs it
# here, and its 69 files spend most of their time on the same headers, so two dozen are compiled as one.
if(CMAKE_SOURCE_DIR MATCHES "libbitcoinkernel-sys")
  set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O1 -g0" CACHE STRING "")
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g0" CACHE STRING "")
  set(CMAKE_UNITY_BUILD ON CACHE BOOL "")
  set(CMAKE_UNITY_BUILD_BATCH_SIZE 24 CACHE STRING "")
endif()
