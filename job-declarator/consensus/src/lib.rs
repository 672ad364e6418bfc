//! Nothing but tests: what we take for a block is one by Bitcoin Core's consensus code, and what we refuse
//! is none. A package of its own, outside of the workspace's default members, because building that code
//! takes minutes and cmake, and whoever works on anything else should need neither.
