//! Which instructions of this CPU the goals speak of.

#[cfg(target_arch = "x86_64")]
use proto::sha256::Kernel;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// SHA-256 in hardware: SHA-NI, or ARMv8's.
    pub sha: bool,
    /// 512-bit vectors, as our kernel of sixteen lanes uses them.
    pub avx512: bool,
}

/// What a goal speaks of: on a CPU without it, it is not judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// SHA instructions, by which a lone share is hashed.
    Sha,
    /// SHA instructions or 512-bit vectors: a burst is hashed by either.
    ShaOrAvx512,
}

impl Cpu {
    /// Asks this one.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        return Self {
            sha: std::arch::is_x86_feature_detected!("sha"),
            avx512: Kernel::Avx512.is_available(),
        };
        #[cfg(target_arch = "aarch64")]
        return Self { sha: std::arch::is_aarch64_feature_detected!("sha2"), avx512: false };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        Self { sha: false, avx512: false }
    }

    /// Whether a goal of this kind is judged here.
    #[must_use]
    pub fn has(self, needs: Needs) -> bool {
        match needs {
            Needs::Sha => self.sha,
            Needs::ShaOrAvx512 => self.sha || self.avx512,
        }
    }
}

impl std::fmt::Display for Needs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sha => "SHA-NI",
            Self::ShaOrAvx512 => "SHA-NI or AVX-512",
        })
    }
}

impl std::fmt::Display for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |found| if found { "yes" } else { "no" };
        let kind = std::env::consts::ARCH;
        write!(f, "{kind}, SHA-NI: {}, AVX-512: {}", word(self.sha), word(self.avx512))
    }
}
