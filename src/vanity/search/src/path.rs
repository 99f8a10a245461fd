//! The implementations of the arithmetic.

use std::fmt;
use std::str::FromStr;

/// An implementation of the arithmetic. All find the same keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// AVX-512 IFMA, eight keys at once.
    Ifma,
    /// AVX2, four keys at once.
    Avx2,
    /// Any processor, one key at a time.
    Portable,
}

impl Path {
    /// All, the fastest first.
    pub const ALL: [Self; 3] = [Self::Ifma, Self::Avx2, Self::Portable];

    /// The fastest that this processor can run.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|path| path.is_available()).unwrap_or(Self::Portable)
    }

    /// True if this processor can run it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Ifma => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512ifma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Ifma | Self::Avx2 => false,
            Self::Portable => true,
        }
    }

    /// Keys that it tests at once.
    pub fn lanes(self) -> usize {
        match self {
            Self::Ifma => 8,
            Self::Avx2 => 4,
            Self::Portable => 1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ifma => "avx512ifma",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|path| path.name() == text);
        named.ok_or_else(|| format!("{text:?} is not one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}
