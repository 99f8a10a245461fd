//! Imports of keys in the formats of other programs; the tests create the files themselves.

use curve25519_dalek::Scalar;
use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use ed25519_dalek::SigningKey;
use pkcs8::{AlgorithmIdentifierRef, LineEnding, PrivateKeyInfo, SecretDocument};
use rand::RngExt;

use super::*;
use crate::store::Kind;
use crate::tor::keystore::write_identity_key;

fn service() -> (tempfile::TempDir, IdentitySecret) {
    let folder = tempfile::tempdir().unwrap();
    let secret = IdentitySecret::generate(&mut rand::rng());
    fs::write(folder.path().join(C_TOR_SECRET), [&SECRET_HEADER[..], secret.expanded()].concat()).unwrap();
    (folder, secret)
}

#[test]
fn the_key_of_a_hidden_service_dir_is_taken() {
    let (folder, secret) = service();
    let file = folder.path().join(C_TOR_SECRET);
    assert_eq!(import_identity_key(&file).unwrap().expanded(), secret.expanded());
    let address = secret.service_id();
    fs::write(folder.path().join("hostname"), format!("{address}\n")).unwrap();
    let public = [&PUBLIC_HEADER[..], address.public_key()].concat();
    fs::write(folder.path().join("hs_ed25519_public_key"), public).unwrap();
    assert_eq!(import_identity_key(folder.path()).unwrap().service_id(), address);
}

#[test]
fn a_copy_of_our_own_master_key_is_taken_whole_or_not_at_all() {
    let (folder, secret) = service();
    let (path, address) = (folder.path().join("copy"), secret.service_id());
    let whole = file::encode(Kind::IdentityKey, address.address(), secret.expanded());
    fs::write(&path, &*whole).unwrap();
    assert_eq!(import_identity_key(&path).unwrap().expanded(), secret.expanded());
    for cut in [whole.len() - 1, whole.len() - 64, 20] {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(matches!(import_identity_key(&path), Err(ImportError::Damaged { .. })), "cut to {cut}");
    }
    let other = IdentitySecret::generate(&mut rand::rng()).service_id();
    fs::write(&path, &*file::encode(Kind::IdentityKey, other.address(), secret.expanded())).unwrap();
    assert!(matches!(import_identity_key(&path), Err(ImportError::Mismatch { key, .. }) if key == address));
    fs::write(&path, &*file::encode(Kind::AuthorityKey, address.address(), &secret.expanded()[..32])).unwrap();
    assert!(matches!(import_identity_key(&path), Err(ImportError::Damaged { damage: Damage::Kind(_), .. })));
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let (folder, _) = service();
    let other = IdentitySecret::generate(&mut rand::rng()).service_id();
    let hostname = folder.path().join("hostname");
    fs::write(&hostname, format!("{other}\n")).unwrap();
    assert!(matches!(import_identity_key(folder.path()), Err(ImportError::Mismatch { path, .. }) if path == hostname));
}

#[test]
fn a_hostname_is_read_to_its_end() {
    let (folder, secret) = service();
    let hostname = folder.path().join("hostname");
    fs::write(&hostname, format!("{}\n{}and more", secret.service_id(), " ".repeat(100))).unwrap();
    assert!(matches!(import_identity_key(folder.path()), Err(ImportError::Mismatch { path, .. }) if path == hostname));
}

/// A key whose seed is known, unlike that of C tor's expanded keys.
fn seeded() -> (SigningKey, IdentitySecret) {
    let seed = Zeroizing::new(rand::rng().random::<[u8; 32]>());
    (SigningKey::from_bytes(&seed), IdentitySecret::from_seed(&seed))
}

/// As `openssl genpkey -algorithm ed25519` and onionbalance-config write a seed: PKCS#8, version 1.
fn pem(key: &SigningKey) -> String {
    let der = [&HEXLOWER.decode(b"302e020100300506032b657004220420").unwrap(), &key.to_bytes()[..]].concat();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64.encode(&der))
}

/// The same in PKCS#8 version 2, which includes the public key, with the line ends of Windows.
fn pem_with_public_half(key: &SigningKey) -> String {
    let (seed, public) = ([&[4, 32], &key.to_bytes()[..]].concat(), key.verifying_key().to_bytes());
    let algorithm = AlgorithmIdentifierRef { oid: forms::ED25519, parameters: None };
    let info = PrivateKeyInfo { public_key: Some(&public), ..PrivateKeyInfo::new(algorithm, &seed) };
    SecretDocument::encode_msg(&info).unwrap().to_pem("PRIVATE KEY", LineEnding::CRLF).unwrap().to_string()
}

/// Imports a file with this content.
fn imported(content: impl AsRef<[u8]>) -> Result<ServiceId, ImportError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content).unwrap();
    import_identity_key(file.path()).map(|secret| secret.service_id())
}

#[test]
fn a_key_is_taken_in_every_form_that_other_programs_write() {
    let (key, secret) = seeded();
    let address = secret.service_id();
    assert_eq!(address.public_key(), key.verifying_key().as_bytes());
    let (expanded, file) = (secret.expanded(), [&SECRET_HEADER[..], secret.expanded()].concat());
    // Arti keeps the scalar reduced.
    let scalar = Scalar::from_bytes_mod_order(*expanded.first_chunk().unwrap());
    let reduced = [scalar.as_bytes(), &expanded[32..]].concat().try_into().unwrap();
    let arti = write_identity_key(&reduced, address.public_key());
    let wrapped: String =
        BASE64.encode(&file).as_bytes().chunks(76).flat_map(|line| [line, b"\n"].concat()).map(char::from).collect();
    let of_mkp224o = format!(
        "---\nhostname: {address}\nhs_ed25519_public_key: {}\nhs_ed25519_secret_key: {}\ntime: 2026-01-01 00:00:00 Z\n\n",
        BASE64.encode(&[&PUBLIC_HEADER[..], address.public_key()].concat()),
        BASE64.encode(&file),
    );
    let texts = [
        ("PEM", pem(&key)),
        ("PEM, version 2", pem_with_public_half(&key)),
        ("PEM after a preamble", format!("Bag Attributes\n  friendlyName: x\n{}\n", pem(&key))),
        ("Arti", arti.clone()),
        ("base64 of 64 bytes", BASE64.encode(expanded)),
        ("base64 for URLs", BASE64URL_NOPAD.encode(expanded)),
        ("base64 of C tor's file", BASE64.encode(&file)),
        ("base64 in lines", wrapped),
        ("ADD_ONION", format!("ED25519-V3:{}", BASE64.encode(expanded))),
        ("hex", HEXLOWER.encode(expanded)),
        ("hex of C tor's file, in upper case", HEXLOWER.encode(&file).to_uppercase()),
        ("seed and public key in hex", HEXLOWER.encode(&key.to_keypair_bytes())),
        ("mkp224o's YAML", of_mkp224o),
    ];
    for (form, text) in texts {
        for ended in [text.trim_end().to_owned(), format!("{text}\n"), format!("\n{text}\r\n")] {
            assert_eq!(imported(&ended).unwrap_or_else(|error| panic!("{form}: {error}")), address, "{form}");
        }
    }
    for end in ["", "\n", "\r\n"] {
        assert_eq!(imported([&file, end.as_bytes()].concat()).unwrap(), address);
    }
}

#[test]
fn the_key_in_a_folder_is_found() {
    let (key, secret) = seeded();
    let address = secret.service_id();
    let file = [&SECRET_HEADER[..], secret.expanded()].concat();
    let arti = write_identity_key(secret.expanded(), address.public_key());
    let label = address.to_string().trim_end_matches(".onion").to_owned();
    let ours = file::encode(Kind::IdentityKey, address.address(), secret.expanded());
    let of_version_1 = file::encode_as("master.key", 1, address.address(), secret.expanded());
    // The key file, its content, and another file in the same folder.
    let folders = [
        ("hs_ed25519_secret_key".to_owned(), file.clone(), "authorized_clients/x.auth"),
        (format!("{address}/hs_ed25519_secret_key"), file.clone(), "README"),
        ("ks_hs_id.ed25519_expanded_private".into(), arti.clone().into_bytes(), "kp_x.public"),
        ("hss/a site/ks_hs_id.ed25519_expanded_private".into(), arti.into_bytes(), "hss/another/empty"),
        (format!("{label}.key"), pem(&key).into_bytes(), "config.yaml"),
        (format!("services/{label}/identity.key"), ours.to_vec(), "node.key"),
        ("identity.key".into(), ours.to_vec(), "node.key"),
        ("master.key".into(), of_version_1.to_vec(), "node.key"),
    ];
    for (name, content, other) in folders {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [(&*name, &*content), (other, b"no key")] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let found = import_identity_key(folder.path());
        assert_eq!(found.unwrap_or_else(|error| panic!("{name}: {error}")).service_id(), address);
    }

    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(import_identity_key(folder.path()), Err(ImportError::NotFound(_))));
    for name in ["a", "b"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join(C_TOR_SECRET), &file).unwrap();
    }
    let several = import_identity_key(folder.path()).unwrap_err();
    assert!(several.to_string().ends_with(&format!("a/{C_TOR_SECRET}")), "{several}");
}

#[test]
fn a_key_file_called_after_another_address_is_refused() {
    let ((key, secret), (_, other)) = (seeded(), seeded());
    let folder = tempfile::tempdir().unwrap();
    let named = |of: &IdentitySecret| {
        folder.path().join(format!("{}.key", of.service_id().to_string().trim_end_matches(".onion")))
    };
    for of in [&secret, &other] {
        fs::write(named(of), pem(&key)).unwrap();
    }
    assert_eq!(import_identity_key(&named(&secret)).unwrap().service_id(), secret.service_id());
    assert!(matches!(import_identity_key(&named(&other)), Err(ImportError::Mismatch { .. })));
    let yaml =
        format!("hostname: {}\nhs_ed25519_secret_key: {}\n", other.service_id(), BASE64.encode(secret.expanded()));
    assert!(matches!(imported(yaml), Err(ImportError::Mismatch { .. })));
}

#[test]
fn known_files_without_a_usable_secret_key_are_refused_with_what_to_do() {
    let (key, secret) = seeded();
    let public = secret.service_id().public_key().to_owned();
    let public_file = [&PUBLIC_HEADER[..], &public].concat();
    let yaml = format!("hs_ed25519_secret_key: {}\n", BASE64.encode(secret.expanded()));
    let labelled = |label| pem(&key).replace("PRIVATE KEY", label);
    // Anyone can compute the signature nonces of these two.
    let leaks = [&secret.expanded()[..32], &public].concat();
    let zeros = [&secret.expanded()[..32], &[0; 32]].concat();
    let (_, other) = seeded();
    let ssh = write_identity_key(secret.expanded(), other.service_id().public_key());
    for (content, want) in [
        (BASE64.encode(&public_file), "public key"),
        (labelled("PUBLIC KEY"), "public key"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA a comment".into(), "public key"),
        (labelled("ENCRYPTED PRIVATE KEY"), "openssl pkey"),
        (labelled("RSA PRIVATE KEY"), "version 2"),
        ("RSA1024:MIICXQIBAAKBgQ".into(), "version 2"),
        (pem(&key).replace("MC4C", "MC5C"), "PKCS#8"),
        (yaml.repeat(2), "2 services"),
        (ssh, "halves"),
        (BASE64.encode(&leaks), "not secret"),
        (HEXLOWER.encode(&zeros), "not secret"),
        (BASE64.encode(&[0xff; 64]), "neither clamped nor reduced"),
    ] {
        let error = imported(&content).unwrap_err().to_string();
        assert!(error.contains(want), "{want}: {error}");
        assert!(!error.contains("Bag") && !error.contains(&BASE64.encode(secret.expanded())[..20]), "{error}");
    }
    for unknown in ["", "a", "hs_ed25519_secret_key", &HEXLOWER.encode(&key.to_bytes()), &"A".repeat(20_000)] {
        let error = imported(unknown).unwrap_err().to_string();
        for form in [
            "hs_ed25519_secret_key",
            "mkp224o",
            "PKCS#8",
            "onionbalance-config",
            "ks_hs_id",
            "base64",
            "hex",
            "ED25519-V3:",
            "identity.key",
        ] {
            assert!(error.contains(form), "{form} is not in {error}");
        }
    }
}

#[test]
fn damaged_files_of_c_tor_are_refused_as_such() {
    let (folder, secret) = service();
    let file = folder.path().join(C_TOR_SECRET);
    let whole = fs::read(&file).unwrap();
    for length in 0..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        let refused = import_identity_key(&file).unwrap_err();
        let is_cut = matches!(&refused, ImportError::Form { source: KeyFormatError::Length(size), .. } if *size == length as u64);
        let unknown = matches!(&refused, ImportError::Form { source: KeyFormatError::Unknown(_), .. });
        assert!(if length < 32 { unknown } else { is_cut }, "cut to {length}: {refused}");
    }
    fs::write(&file, [&whole[..], b"x"].concat()).unwrap();
    assert!(matches!(import_identity_key(&file), Err(ImportError::Form { source: KeyFormatError::Length(97), .. })));
    fs::write(&file, [&PUBLIC_HEADER[..], secret.service_id().public_key()].concat()).unwrap();
    assert!(matches!(import_identity_key(&file), Err(ImportError::Form { source: KeyFormatError::Public, .. })));
    fs::write(&file, [&SECRET_HEADER[..], &[0xff; 64]].concat()).unwrap();
    assert!(matches!(import_identity_key(&file), Err(ImportError::Form { source: KeyFormatError::Key(_), .. })));
    assert!(matches!(import_identity_key(Path::new("/nonexistent")), Err(ImportError::Io { .. })));
}
