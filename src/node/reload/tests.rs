//! A reload of files with mistakes, and of one without.

use std::fs;

use super::*;
use crate::config::FILE_NAME;

const PORT: &str = "[[port]]\nvirtual = 80\ntarget = \"127.0.0.1:8080\"\n";

#[test]
fn a_file_with_mistakes_is_refused_whole_with_each_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    fs::write(&path, PORT).unwrap();
    let live = LiveConfig::new(Config::load(folder.path()).unwrap());
    let streams = live.proxy();
    for (text, places) in [
        ("[limits]\nstreams = 9\n[[port]\n".to_owned(), &["line 3, column"][..]),
        (
            format!("[limits]\nstreams = 9\nstraems = 8\n[health]\nfailures = 0\n{PORT}"),
            &["line 3, column 1: ", "line 5, column 12: "],
        ),
        (format!("[limits]\nstreams = 9\n{PORT}[arti.logging]\nx = 1\n"), &["\"logging"]),
    ] {
        fs::write(&path, text).unwrap();
        let error = with_causes(&reload(folder.path(), &live).unwrap_err());
        assert!(places.iter().all(|place| error.contains(place)), "{error}");
        assert!(!in_one_line(&error).contains('\n'), "{error}");
        assert!(!streams.has_changed().unwrap(), "a part of a refused configuration is in use: {error}");
    }
    fs::write(&path, format!("[limits]\nstreams = 9\n{PORT}")).unwrap();
    assert_eq!(reload(folder.path(), &live).unwrap().applied.len(), 1);
    assert_eq!(streams.borrow().streams, 9);
    fs::remove_file(&path).unwrap();
    assert!(matches!(reload(folder.path(), &live), Err(ReloadError::Config(_))));
    assert_eq!(streams.borrow().streams, 9);
}
