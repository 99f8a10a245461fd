//! What runs the passes of a search: threads of the processor, or a graphics processor.

use std::sync::Arc;

use rustbalance_gossip::id::ServiceId;
use rustbalance_vanity::{Hit, Path, Prefixes, Search, Table};
use rustbalance_vanity_dispatch::pass;
#[cfg(feature = "gpu")]
use rustbalance_vanity_gpu as gpu;

use super::VanityError;

/// What searches.
#[derive(Debug, Clone)]
pub enum Engine {
    /// The processor.
    Processor {
        /// The implementation.
        path: Path,
        /// Number of threads.
        threads: usize,
    },
    /// A graphics processor.
    #[cfg(feature = "gpu")]
    Gpu(Arc<gpu::Device>),
}

/// Why no graphics processor can search.
#[derive(Debug, thiserror::Error)]
pub enum GpuUnavailable {
    /// It was not compiled in.
    #[cfg(not(feature = "gpu"))]
    #[error("this program was built without `--gpu`; `cargo build --release --features gpu` builds it")]
    Feature,
    /// No device can be used.
    #[cfg(feature = "gpu")]
    #[error(transparent)]
    Device(#[from] gpu::GpuError),
}

impl Engine {
    /// The fastest graphics processor, or the first whose name contains `named`. It may take
    /// seconds to compile the shader for it.
    ///
    /// # Errors
    /// If there is none that can search.
    #[cfg(feature = "gpu")]
    pub fn gpu(named: &str) -> Result<Self, GpuUnavailable> {
        Ok(Self::Gpu(Arc::new(gpu::Device::open(named)?)))
    }

    /// No graphics processor, because it was not compiled in.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "gpu"))]
    pub fn gpu(_: &str) -> Result<Self, GpuUnavailable> {
        Err(GpuUnavailable::Feature)
    }

    /// Number of threads that the search takes.
    pub fn threads(&self) -> usize {
        match self {
            Self::Processor { threads, .. } => *threads,
            #[cfg(feature = "gpu")]
            Self::Gpu(_) => 1,
        }
    }

    /// The name of the implementation: that of a [`Path`], or `gpu`.
    pub fn path(&self) -> String {
        match self {
            Self::Processor { path, .. } => path.to_string(),
            #[cfg(feature = "gpu")]
            Self::Gpu(_) => "gpu".into(),
        }
    }

    /// The name of the graphics processor.
    pub fn device(&self) -> Option<&str> {
        match self {
            Self::Processor { .. } => None,
            #[cfg(feature = "gpu")]
            Self::Gpu(device) => Some(device.name()),
        }
    }

    /// A search from one start.
    pub(super) fn search(
        &self,
        start: &ServiceId,
        prefixes: &Arc<Prefixes>,
        table: &Arc<Table>,
    ) -> Result<Worker, VanityError> {
        Ok(match self {
            Self::Processor { path, .. } => Worker::Processor(Search::new(*path, start.public_key(), prefixes, table)?),
            #[cfg(feature = "gpu")]
            Self::Gpu(device) => Worker::Gpu(gpu::Search::new(device, start.public_key(), prefixes)?),
        })
    }
}

/// A search from one start, on one thread.
pub(super) enum Worker {
    Processor(Search),
    #[cfg(feature = "gpu")]
    Gpu(gpu::Search),
}

impl Worker {
    /// Tests some keys: less than a second's work. Returns how many, and those that were searched
    /// for.
    pub(super) fn run(&mut self) -> Result<(u64, Vec<Hit>), VanityError> {
        match self {
            Self::Processor(search) => Ok((search.keys_per_pass(), pass(search))),
            #[cfg(feature = "gpu")]
            Self::Gpu(search) => {
                let batch = search.run()?;
                Ok((batch.tested, batch.hits))
            }
        }
    }
}
