//! Whether this node keeps its introduction points.

/// The state of a node's introduction points, in the order in which it stops.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keeping {
    /// Lost points are opened again.
    #[default]
    All,
    /// Points stay open until another node takes them: their relay then closes the circuit of this
    /// one. They are not opened again.
    UntilTaken,
    /// All are closed.
    Nothing,
}
