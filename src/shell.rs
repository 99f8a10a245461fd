//! Text that can be pasted into a shell.

use std::path::Path;

/// One argument for a shell, quoted if needed.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// A path as one argument for a shell, quoted if needed.
pub(crate) fn path(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_arguments_and_paths_can_be_pasted_into_a_shell() {
        assert_eq!(quote("/var/lib/rb"), "/var/lib/rb");
        assert_eq!(quote(""), "''");
        assert_eq!(path(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
