//! The search of [`rustbalance_vanity`] on a graphics processor.
//!
//! Each invocation of a compute shader is one lane. Per pass it runs the formula over a table of
//! 512 points, in three steps: `multiply` computes the denominators and their products, `turn`
//! inverts the last product and moves the centre on, `test` computes the keys. All lanes search
//! from one start.
//!
//! The device gets numbers that come from public points, and never a secret. What it reports is
//! computed again by the processor.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use rustbalance_vanity::Prefixes;
//! use rustbalance_vanity_gpu::{Device, Search};
//!
//! let device = Arc::new(Device::open("")?);
//! let prefixes = Arc::new(Prefixes::new(&["shop".parse()?]));
//! let start = curve25519_dalek::constants::ED25519_BASEPOINT_COMPRESSED.0;
//! let mut search = Search::new(&device, &start, &prefixes)?;
//! let batch = search.run()?;
//! println!("{} keys tested, {} found", batch.tested, batch.hits.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use rustbalance_vanity::SearchError;

pub use device::Device;
pub use search::{Batch, Search};

mod device;
mod search;
mod shader;

/// Why a device cannot search.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GpuError {
    /// There is no device, or none that was asked for.
    #[error("there is no graphics processor{named}; {found}")]
    Missing {
        /// The name that it should have contained, as part of a sentence.
        named: String,
        /// Which devices there are, as a sentence.
        found: String,
    },
    /// The device has too little memory or too few resources for a single group of lanes.
    #[error("the graphics processor {name} is too small for a search: it binds {bytes} bytes at once")]
    Small {
        /// Its name.
        name: String,
        /// The largest buffer that it binds.
        bytes: u64,
    },
    /// The device or its driver has failed.
    #[error("the graphics processor {name} has failed: {reason}")]
    Failed {
        /// Its name.
        name: String,
        /// What the driver says.
        reason: String,
    },
    /// The start is not the public key of an onion service.
    #[error(transparent)]
    Start(#[from] SearchError),
}
