//! The decisions of the kernel engine, with an interface in memory; and in `guest`, the engine in a
//! real kernel.

mod fake;
mod guest;
mod table;
mod worker;
