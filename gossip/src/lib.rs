//! What RustBalance nodes must agree on. No Tor, no sockets, no clock, no randomness of its own.
