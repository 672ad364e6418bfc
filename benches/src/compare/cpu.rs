//! Which instructions of this CPU the goals speak of.

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// SHA-256 in hardware: SHA-NI, or ARMv8's.
    pub sha: bool,
    /// 512-bit vectors.
    pub avx512: bool,
}

impl Cpu {
    /// Asks this one.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        return Self {
            sha: std::arch::is_x86_feature_detected!("sha"),
            avx512: std::arch::is_x86_feature_detected!("avx512f"),
        };
        #[cfg(target_arch = "aarch64")]
        return Self { sha: std::arch::is_aarch64_feature_detected!("sha2"), avx512: false };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        Self { sha: false, avx512: false }
    }
}

impl std::fmt::Display for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |found| if found { "yes" } else { "no" };
        let kind = std::env::consts::ARCH;
        write!(f, "{kind}, SHA-NI: {}, AVX-512: {}", word(self.sha), word(self.avx512))
    }
}
