//! Describes errors in a TOML text without quoting it: a line of it may be a bridge, whose address
//! and fingerprint must not get into the journal.

/// Longest key shown, in bytes.
const LONGEST_KEY: usize = 40;

/// Where `text` stops being valid TOML (line and column, counted from 1; the key if the line has a
/// plain one), and why.
pub(crate) fn describe(text: &str, error: &toml::de::Error) -> String {
    let Some(span) = error.span() else { return error.message().to_owned() };
    let (line, column) = place(text, span.start);
    let key = text.lines().nth(line - 1).and_then(plain_key);
    let key = key.map(|key| format!(" ({key:?})")).unwrap_or_default();
    format!("line {line}, column {column}{key}: {}", error.message())
}

/// Line and column of the byte `at` of `text`, counted from 1, the column in characters.
pub(crate) fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// The key of a line, if it consists of letters and underscores: any other text before a "=" may be
/// part of a bridge.
fn plain_key(line: &str) -> Option<&str> {
    let key = line.split_once('=')?.0.trim();
    let plain = key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    (plain && (1..=LONGEST_KEY).contains(&key.len())).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(text: &str) -> String {
        describe(text, &text.parse::<toml::Table>().unwrap_err())
    }

    #[test]
    fn a_syntax_error_is_named_with_its_place_and_key() {
        let text = described("[vanguards]\nmode = \n");
        assert!(text.starts_with("line 2, column 8 (\"mode\"): "), "{text}");
    }

    #[test]
    fn no_part_of_a_bridge_line_is_shown() {
        let bridge = "obfs4 192.0.2.7:4430 0123456789ABCDEF0123456789ABCDEF01234567 cert=sEcReT/+ iat-mode=0";
        let broken = [
            format!("bridges = [\n  \"{bridge}\n]\n"),
            format!("[bridges]\nbridges = {bridge}\n"),
            format!("[bridges]\n{bridge}\n"),
            format!("bridges = '''\n{bridge}\n"),
            format!("bridges = [ \"{bridge}\" \"{bridge}\" ]\n"),
            format!("\"{bridge}\" = 1\n\"{bridge}\" = 2\n"),
        ];
        for text in broken {
            let described = described(&text);
            for part in ["192.0.2", "4430", "01234567", "sEcReT", "obfs4", "iat-mode"] {
                assert!(!described.contains(part), "{described} shows {part} of\n{text}");
            }
            assert!(described.starts_with("line "), "{described}");
        }
    }
}
