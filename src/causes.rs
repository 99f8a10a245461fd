//! An error with its causes, in one line.

use std::error::Error;

/// The text of `error` and of its causes, outermost first. A cause whose text is already in the
/// line is left out, because some errors include their cause in their own text.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let shown = next.to_string();
        if !text.contains(&shown) {
            text = format!("{text}: {shown}");
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_shown_once() {
        let cause = std::io::Error::other("disk full");
        let error = anyhow::Error::from(cause).context("cannot write x: disk full").context("init failed");
        assert_eq!(with_causes(error.as_ref()), "init failed: cannot write x: disk full");
    }
}
