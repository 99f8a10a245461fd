//! Links over WireGuard.

mod links;
