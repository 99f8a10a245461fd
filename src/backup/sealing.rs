//! Encrypts and decrypts with a passphrase, in the age format.

use std::io::{Read, Write};
use std::iter;
use std::ops::RangeInclusive;

use age::secrecy::SecretString;
use age::{DecryptError, Decryptor, Encryptor, scrypt};
use zeroize::Zeroizing;

use super::{BackupError, MAX_BACKUP, Passphrase};

/// Work factors that are written and accepted, as powers of two: scrypt takes 1 KiB of memory for
/// each step. 2^12 takes 4 MiB, and tests need a fast one; 2^20 takes 1 GiB and seconds.
pub const WORK: RangeInclusive<u8> = 12..=20;
/// The default: 2^17 steps take 128 MiB and half a second, which a host with a running node has.
pub const DEFAULT_WORK: u8 = 17;

/// Encrypts the archive.
pub(super) fn seal(archive: &[u8], passphrase: &Passphrase, work: u8) -> Result<Vec<u8>, BackupError> {
    let failed = |error: &dyn std::fmt::Display| BackupError::Encrypt(error.to_string());
    let mut recipient = scrypt::Recipient::new(SecretString::from(passphrase.reveal()));
    recipient.set_work_factor(work.clamp(*WORK.start(), *WORK.end()));
    let recipients = iter::once(&recipient as &dyn age::Recipient);
    let encryptor = Encryptor::with_recipients(recipients).map_err(|error| failed(&error))?;
    let mut sealed = Vec::with_capacity(archive.len() + archive.len() / 1024 + 1024);
    let mut writer = encryptor.wrap_output(&mut sealed).map_err(|error| failed(&error))?;
    writer.write_all(archive).and_then(|()| writer.finish()).map_err(|error| failed(&error))?;
    Ok(sealed)
}

/// Decrypts what [`seal`] has written, or another tool.
pub(super) fn open(sealed: &[u8], passphrase: &Passphrase) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let decryptor = Decryptor::new_buffered(sealed).map_err(|_| BackupError::NotAge)?;
    if !decryptor.is_scrypt() {
        return Err(BackupError::NotPassphrase);
    }
    let mut identity = scrypt::Identity::new(SecretString::from(passphrase.reveal()));
    identity.set_max_work_factor(*WORK.end());
    let opened = decryptor.decrypt(iter::once(&identity as &dyn age::Identity)).map_err(|error| match error {
        DecryptError::ExcessiveWork { required, .. } => BackupError::TooMuchWork { required },
        DecryptError::KeyDecryptionFailed | DecryptError::NoMatchingKeys | DecryptError::DecryptionFailed => {
            BackupError::WrongPassphrase
        }
        DecryptError::Io(_) => BackupError::Damaged,
        _ => BackupError::NotAge,
    })?;
    // Never grows, so that no freed memory holds a copy of a key: the content is shorter.
    let mut archive = Zeroizing::new(Vec::with_capacity(sealed.len().min(MAX_BACKUP)));
    opened.take(MAX_BACKUP as u64).read_to_end(&mut archive).map_err(|_| BackupError::Damaged)?;
    Ok(archive)
}
