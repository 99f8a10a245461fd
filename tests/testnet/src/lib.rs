//! A private Tor network of C tor processes on loopback.
