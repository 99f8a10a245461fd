//! Arti's configuration from the operator's text, with our directories and a key store in memory.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use arti_client::config::TorClientConfig;
use tor_config::load::ConfigResolveOptions;
use tor_config::sources::MustRead;
use tor_config::{ConfigurationSource, ConfigurationSources};

use crate::causes::with_causes;
use crate::tor::TorError;
use crate::{memory, shell, syntax};

/// Most unknown keys that one message names.
const MOST_KEYS: usize = 12;
/// Shorter parts of a bridge line, in bytes, stay in an error text: they identify no bridge and
/// may occur in the message itself.
const SHORTEST_HIDDEN: usize = 5;
/// Replaces the parts of bridge lines in an error text.
const HIDDEN: &str = "(hidden)";

/// Configuration of the engine.
#[derive(Debug, Clone)]
pub struct ArtiConfig {
    /// Arti's own configuration, as TOML. It is passed on unchanged, except that its storage
    /// directories and key store are replaced.
    pub toml: String,
    /// Folder of Arti's state.
    pub state_dir: PathBuf,
    /// Folder of Arti's cache. No two running clients may share it.
    pub cache_dir: PathBuf,
}

/// Parses Arti's configuration. The key store is in memory, so that the node's key file stays the
/// only copy of its key.
pub(super) fn configure(config: &ArtiConfig) -> Result<TorClientConfig, TorError> {
    let table: toml::Table = config.toml.parse().map_err(|error| {
        TorError::Config(
            format!("its configuration is not valid TOML: {}", syntax::describe(&config.toml, &error)),
            None,
        )
    })?;
    let invalid = |error: &dyn std::error::Error, what: &str| {
        TorError::Config(format!("{what}: {}", without_bridges(&table, with_causes(error))), None)
    };
    let mut sources = ConfigurationSources::new_empty();
    // Later sources win: the operator's text over our defaults, our fixed settings over both.
    sources.push_source(ConfigurationSource::from_verbatim(defaults(memory::quota())), MustRead::MustRead);
    sources.push_source(ConfigurationSource::from_verbatim(config.toml.clone()), MustRead::MustRead);
    sources.push_source(ConfigurationSource::from_verbatim(ours(config)?), MustRead::MustRead);
    let tree = sources.load().map_err(|error| invalid(&error, "its configuration cannot be read"))?;
    let options = ConfigResolveOptions::default();
    let resolved = tor_config::resolve_return_results::<TorClientConfig>(&tree, &options).map_err(|error| {
        invalid(&error, "its configuration is not valid; mend the [arti] table or the file it names")
    })?;
    if !resolved.unrecognized.is_empty() {
        let keys = resolved.unrecognized.iter().map(|key| format!("{:?}", key.to_string())).collect();
        return Err(unknown_keys(keys));
    }
    Ok(resolved.value)
}

/// Checks the configuration and the permissions of Arti's directories and their parents. The
/// directories need not exist yet. Arti refuses a parent that other users can write to, because
/// they could replace the directories.
///
/// # Errors
/// If Arti would refuse to start; the text contains the command that mends the permissions.
pub fn check(config: &ArtiConfig) -> Result<(), TorError> {
    let arti = configure(config)?;
    for dir in [&config.state_dir, &config.cache_dir] {
        if let Err(error) = arti.fs_mistrust().verifier().permit_readable().check(dir) {
            let path = error.path().unwrap_or(dir).to_owned();
            if error.is_bad_permission() {
                return Err(TorError::Files(refused_path(&path, &error)));
            }
        }
    }
    Ok(())
}

/// Explains why Arti refuses a directory, and how to mend it.
fn refused_path(path: &Path, error: &dyn std::error::Error) -> String {
    let shown = path.display();
    let command =
        |command: String| format!("mend it with `{command} {}`, or choose another place with --dir", shell::path(path));
    let Ok(metadata) = path.symlink_metadata() else { return with_causes(error) };
    let (mode, owner, me) = (metadata.mode() & 0o7777, metadata.uid(), pwd_grp::geteuid());
    if mode & 0o022 != 0 && (owner == 0 || owner == me) {
        return format!(
            "{shown} may be written to by other users (mode {mode:04o}), who could replace what is in it: {}",
            command("chmod go-w".into())
        );
    }
    if owner != 0 && owner != me {
        return format!(
            "{shown} belongs to user {owner}, who could replace what is in it; rustbalance runs as user {me}: {}",
            command(format!("chown {me}"))
        );
    }
    format!("{}: choose another place with --dir", with_causes(error))
}

/// The error for keys that Arti's client does not know. It names several at once, because the
/// configuration file of the `arti` program has several.
fn unknown_keys(mut keys: Vec<String>) -> TorError {
    let more = keys.len().saturating_sub(MOST_KEYS);
    keys.truncate(MOST_KEYS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    TorError::Config(
        format!(
            "its configuration has keys that Arti's client does not know: {}{more}; correct or remove them (tables of \
             the arti program itself, such as application, proxy and logging, are not allowed here)",
            keys.join(", ")
        ),
        None,
    )
}

/// Removes the bridge lines of the configuration from an error text. Arti quotes parts of them.
fn without_bridges(table: &toml::Table, text: String) -> String {
    let mut lines = Vec::new();
    if let Some(bridges) = table.get("bridges").and_then(|bridges| bridges.get("bridges")) {
        collect_texts(bridges, &mut lines);
    }
    let mut parts: Vec<&str> = lines.iter().flat_map(|line| parts_of(line)).collect();
    parts.retain(|part| part.len() >= SHORTEST_HIDDEN);
    // The longest first: a part may contain a shorter one.
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    parts.dedup();
    parts.into_iter().fold(text, |text, part| text.replace(part, HIDDEN))
}

fn collect_texts<'a>(value: &'a toml::Value, found: &mut Vec<&'a str>) {
    match value {
        toml::Value::String(text) => found.push(text),
        toml::Value::Array(values) => values.iter().for_each(|value| collect_texts(value, found)),
        toml::Value::Table(table) => table.values().for_each(|value| collect_texts(value, found)),
        _ => {}
    }
}

/// A bridge line, its fields, and the parts of these: host and port, key and value.
fn parts_of(line: &str) -> Vec<&str> {
    let mut parts = vec![line.trim()];
    for field in line.split_whitespace() {
        parts.push(field);
        parts.extend(field.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']'])));
        parts.extend(field.split_once('=').map(|(_, value)| value));
        parts.extend(field.split([',', ';', '=']));
    }
    parts
}

/// Our defaults where they differ from Arti's, as TOML. The operator can override them.
fn defaults(quota: Option<u64>) -> String {
    quota.map(|bytes| format!("[system.memory]\nmax = \"{bytes}\"\n")).unwrap_or_default()
}

/// Our fixed settings, as TOML. The operator cannot override them.
fn ours(config: &ArtiConfig) -> Result<String, TorError> {
    let literal = |path: &Path| {
        let text = path.to_str().ok_or_else(|| {
            TorError::Config(format!("the directory {} is not valid UTF-8; choose another", path.display()), None)
        })?;
        Ok(toml::Table::from_iter([("literal".to_owned(), toml::Value::from(text))]))
    };
    let mut storage = toml::Table::new();
    storage.insert("state_dir".into(), literal(&config.state_dir)?.into());
    storage.insert("cache_dir".into(), literal(&config.cache_dir)?.into());
    let kind = toml::Table::from_iter([("kind".to_owned(), toml::Value::from("ephemeral"))]);
    let mut keystore = toml::Table::from_iter([("enabled".to_owned(), toml::Value::from(true))]);
    keystore.insert("primary".into(), kind.into());
    storage.insert("keystore".into(), keystore.into());
    Ok(toml::Table::from_iter([("storage".to_owned(), toml::Value::from(storage))]).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml: &str) -> ArtiConfig {
        ArtiConfig { toml: toml.into(), state_dir: "/var/lib/a ${b}/state".into(), cache_dir: "/c".into() }
    }

    fn refused(toml: &str) -> String {
        configure(&config(toml)).unwrap_err().to_string()
    }

    #[test]
    fn the_directories_are_ours_whatever_the_text_says() {
        let ours = configure(&config("[storage]\nstate_dir = \"/elsewhere\"\n")).unwrap();
        let same = configure(&config("")).unwrap();
        assert!(ours == same);
        assert!(configure(&config("[vanguards]\nmode = \"full\"\n")).unwrap() != same);
    }

    #[test]
    fn the_memory_quota_is_ours_unless_the_operator_sets_it() {
        assert_eq!(defaults(None), "");
        let with = |max: &str| configure(&config(&format!("[system.memory]\nmax = \"{max}\"\n"))).unwrap();
        let ours = configure(&config("")).unwrap();
        assert!(ours == with(&memory::quota().unwrap().to_string()));
        assert!(ours != with("auto"), "Arti's own is three quarters of the machine's memory");
        assert!(with("300 MiB") == with("314572800") && with("300 MiB") != ours);
    }

    #[test]
    fn a_key_that_arti_does_not_know_is_named() {
        let error = refused("[path_rules]\nlong_live_ports = [1]\n");
        assert!(error.contains("path_rules.long_live_ports"), "{error}");
    }

    #[test]
    fn every_unknown_key_of_the_arti_programs_file_is_named() {
        let error = refused("[application]\nx = 1\n[proxy]\ny = 2\n[logging]\nz = 3\n[onion_services.a]\nw = 4\n");
        for key in ["application", "proxy", "logging", "onion_services"] {
            assert!(error.contains(&format!("\"{key}")), "{key} is not in: {error}");
        }
    }

    #[test]
    fn a_wrong_value_is_named() {
        let error = refused("[vanguards]\nmode = \"fool\"\n");
        assert!(error.contains("vanguards.mode"), "{error}");
        let error = refused("[vanguards\n");
        assert!(error.contains("line 1, column 11"), "{error}");
    }

    #[test]
    fn no_part_of_a_bridge_line_is_shown() {
        let print = "0123456789ABCDEF0123456789ABCDEF01234567";
        let lines = [
            format!("obfs9 192.0.2.7:443000 {print} cert=sEcReTsEcReT iat-mode=0"),
            format!("192.0.2.7:4430 {print}00"),
            "192.0.2.7 nonsense".to_owned(),
            format!("[2001:db8::7]:443000 {print}"),
            format!("obfs4 192.0.2.7:4430 {print} {print} ed25519:sEcReTsEcReT"),
            "obfs4 192.0.2.777:443 0123456789ABCDEF0123 cert=sEcReTsEcReT".to_owned(),
        ];
        for line in &lines {
            for toml in [
                format!("[bridges]\nenabled = true\nbridges = [\"{line}\"]\n"),
                format!("[bridges]\nbridges = '''\n{line}\n'''\n"),
                format!("[bridges]\nbridges = \"{line}\nx\"\n"),
            ] {
                let error = configure(&config(&toml)).err().map(|error| error.to_string()).unwrap_or_default();
                for part in ["192.0.2", "2001:db8", &print[..20], "sEcReT"] {
                    assert!(!error.contains(part), "{error} shows {part}");
                }
            }
        }
        let error = refused(&format!("[bridges]\nbridges = [\"{}\"]\n", lines[2]));
        assert!(error.contains("bridges") && error.contains(HIDDEN), "the key is not named: {error}");
    }
}
