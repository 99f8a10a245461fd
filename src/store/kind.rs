//! The files of a state directory: one table, a row for each kind.
//!
//! Versions of the directory are counted from 1. The format number in a file's header is the
//! version of the directory that introduced the format, so that one sequence orders directories,
//! kinds and formats. To add a kind, or a new format of a kind: add or change a row here, raise
//! [`VERSION`], and write a migration (see [`super::migrations`]) if older directories must change.

use rustbalance_gossip::codec::{self, DecodeError};
use rustbalance_gossip::record::Chain;
use zeroize::Zeroizing;

use super::error::Damage;
use super::file::Payload;

/// The version of the state directory that this build writes. Older directories are migrated, newer
/// ones are refused.
pub const VERSION: u32 = 2;

/// Largest payload, in bytes, of a file that holds a key, a number or one statement.
const SMALL: usize = 16 << 10;
/// Largest payload, in bytes, of a list of certificates, revocations or alarms.
const LIST: usize = 2 << 20;

const FROM_BACKUP_OR_JOIN: &str = "Put it back from a backup of this directory, or, if the cluster has other nodes, \
    move this directory to a safe place and `rustbalance join` again.";
const FROM_PUBLISHER: &str = "Put it back from a backup or from another publisher of this cluster, or move this \
    directory to a safe place and `rustbalance join` again.";
const FROM_OTHER_NODE: &str =
    "Put it back from a backup of this directory, or copy it from another node of this cluster.";

/// The properties of one kind of file.
pub(super) struct KindProperties {
    /// The file's name, or, for [`Place::Point`], its file name extension.
    pub(super) name: &'static str,
    /// Where files of this kind are.
    pub(super) place: Place,
    /// The first version of the directory that has it.
    pub(super) since: u32,
    /// The version of the directory that introduced the current format.
    pub(super) format: u32,
    /// The largest payload, in bytes.
    pub(super) max_payload: usize,
    /// The meaning of a missing file.
    pub(super) absent: IfAbsent,
    /// The initial payload, unless `init` or `join` provides another; with [`IfAbsent::Default`],
    /// the value that an absent file stands for.
    pub(super) first: Option<First>,
    /// True if the file is written once and never replaced: keys.
    pub(super) once: bool,
    /// Advice to the operator if the file is lost or damaged.
    pub(super) advice: &'static str,
}

/// Where files of a kind are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the state directory: one file.
    Directory,
    /// In the folder of each service: one file each.
    Service,
    /// In the folder `intro` of each service: any number.
    Point,
}

/// Encodes an initial payload.
type First = fn() -> Result<Vec<u8>, DecodeError>;

/// The meaning of a file's absence in the directory of a complete node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfAbsent {
    /// The directory is damaged.
    Required,
    /// The directory of a publisher is damaged. Workers must not have the file.
    PublishersOnly,
    /// The default applies: [`KindProperties::first`], or, if the row has none, the meaning in the
    /// kind's own documentation.
    Default,
}

/// A row with the values that most rows have.
const fn row(name: &'static str, advice: &'static str) -> KindProperties {
    let (place, since, format, max_payload) = (Place::Directory, 1, 1, SMALL);
    KindProperties {
        name,
        place,
        since,
        format,
        max_payload,
        absent: IfAbsent::Required,
        first: None,
        once: false,
        advice,
    }
}

/// Makes [`Kind`] and its table.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = $row:expr;)+) => {
        /// A kind of file in a state directory.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind {
            $($(#[doc = $doc])+ $kind,)+
        }

        impl Kind {
            /// All kinds, in the order in which `init` and `join` write them.
            pub(super) const ALL: &[Self] = &[$(Self::$kind),+];

            /// Its row in the table.
            pub(super) const fn row(self) -> KindProperties {
                match self {
                    $(Self::$kind => $row,)+
                }
            }
        }
    };
}

kinds! {
    /// `pending`: exists while an `init` or `join` is unfinished.
    Pending = KindProperties {
        absent: IfAbsent::Default,
        ..row("pending", "Remove it if there is no key in the folder `services` beside it, and run `init` or `join` \
            again; otherwise move the whole directory to a safe place first.")
    };
    /// `version`: the version of the directory, and the release that created it or migrated it to
    /// that version (see [`super::version`]). Absent: version 1, which had no such file.
    Version = KindProperties {
        since: 2,
        format: 2,
        absent: IfAbsent::Default,
        ..row("version", "Remove it: `rustbalance run` writes it again.")
    };
    /// `node.key`: the node's seed.
    NodeKey = KindProperties { once: true, ..row("node.key", FROM_BACKUP_OR_JOIN) };
    /// `master.pub`: the address of the cluster's first service, as text. Format 2 has the payload
    /// of format 1; it exists so that a release that knows only version 1 refuses the directory for
    /// the right reason.
    MasterPub = KindProperties { format: 2, once: true, ..row("master.pub", FROM_BACKUP_OR_JOIN) };
    /// `authority.key`: the seed of the certificate-signing key.
    AuthorityKey = KindProperties { absent: IfAbsent::PublishersOnly, once: true, ..row("authority.key", FROM_PUBLISHER) };
    /// `discovery.key`: the keys for restricted discovery (client authorization) of the nodes' own
    /// services.
    DiscoveryKey = row("discovery.key", FROM_BACKUP_OR_JOIN);
    /// `points.key`: the seed from which the keys of the node's introduction points are derived.
    PointSeed = KindProperties { once: true, ..row("points.key", FROM_BACKUP_OR_JOIN) };
    /// `boot`: the number of the last start of the daemon.
    Boot = KindProperties { first: Some(zero), ..row("boot", FROM_BACKUP_OR_JOIN) };
    /// `term`: the highest term known.
    Term = KindProperties { first: Some(zero), ..row("term", FROM_BACKUP_OR_JOIN) };
    /// `invitations`: all invitations known.
    Invitations = KindProperties { max_payload: 8 << 20, first: Some(empty_list), ..row("invitations", FROM_OTHER_NODE) };
    /// `revocations`: all revocations known.
    Revocations = KindProperties { max_payload: LIST, first: Some(empty_list), ..row("revocations", FROM_BACKUP_OR_JOIN) };
    /// `members`: certificates of other members.
    Members = KindProperties { max_payload: LIST, first: Some(empty_list), ..row("members", FROM_OTHER_NODE) };
    /// `draining`: exists from `drain` to `resume`, while the node takes no new clients. Its
    /// payload is empty.
    Draining = KindProperties {
        absent: IfAbsent::Default,
        ..row("draining", "Remove it, and run `rustbalance drain` again if this node is to take no clients.")
    };
    /// `alarms`: the tokens with which more nodes joined as publishers than they were made for.
    /// Absent: none.
    Alarms = KindProperties {
        max_payload: LIST,
        absent: IfAbsent::Default,
        first: Some(empty_list),
        ..row("alarms", "Put it back from a backup of this directory, or remove it: the alarms of old tokens are lost then.")
    };
    /// `facts`: facts of the kinds that have no file of their own. Absent: none.
    Facts = KindProperties {
        since: 2,
        format: 2,
        max_payload: LIST,
        absent: IfAbsent::Default,
        first: Some(empty_list),
        ..row("facts", "Put it back from a backup of this directory, or remove it: other nodes send its facts again.")
    };
    /// `wireguard.key`: the node's WireGuard keys, one or two, each with the start of its use.
    /// Absent until WireGuard is first switched on.
    WireguardKey = KindProperties {
        since: 2,
        format: 2,
        absent: IfAbsent::Default,
        ..row("wireguard.key", "Remove it: the node makes a new key, and announces it.")
    };
    /// `restored`: exists from a restore until the node has run for a while; see
    /// [`RestoredMark`](super::RestoredMark).
    Restored = KindProperties {
        since: 2,
        format: 2,
        absent: IfAbsent::Default,
        ..row("restored", "Remove it if the machine that the backup was made on is off for good.")
    };
    /// `services/<address>/identity.key`: the expanded identity key of the service.
    IdentityKey = KindProperties {
        place: Place::Service,
        since: 2,
        format: 2,
        absent: IfAbsent::PublishersOnly,
        once: true,
        ..row("identity.key", FROM_PUBLISHER)
    };
    /// `services/<address>/revisions`: the highest revision used in each period.
    Revisions = KindProperties { place: Place::Service, first: Some(empty_list), ..row("revisions", FROM_BACKUP_OR_JOIN) };
    /// `services/<address>/intro/<nonce>.point`: an introduction point. A service may have none.
    IntroPoint = KindProperties {
        place: Place::Point,
        absent: IfAbsent::Default,
        ..row("point", "Remove it: the node makes a new introduction point.")
    };
    /// `membership`: the node's own certificates. Written last: its presence marks the directory as
    /// complete.
    Membership = row("membership", FROM_BACKUP_OR_JOIN);
}

impl Kind {
    /// All kinds of files in this place.
    pub(super) fn at(place: Place) -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(move |kind| kind.row().place == place)
    }

    /// The kind whose files have this name or extension.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// The file's name, or, for [`Place::Point`], its file name extension.
    pub(super) fn name(self) -> &'static str {
        self.row().name
    }

    /// The largest payload, in bytes.
    pub(super) fn max_payload(self) -> usize {
        self.row().max_payload
    }

    /// Fails if this build does not read files with this format number.
    pub(super) fn check_format(self, format: u32) -> Result<(), Damage> {
        let KindProperties { since, format: newest, .. } = self.row();
        match format {
            format if format == newest => Ok(()),
            format if format > newest => Err(Damage::Newer { format, newest }),
            format if format >= since => Err(Damage::Older { format, newest }),
            _ => Err(Damage::Header),
        }
    }

    /// The encoded value of an absent file; `None` if the file must exist, or if its absence has no
    /// value.
    pub(super) fn default(self) -> Option<Result<Vec<u8>, DecodeError>> {
        let row = self.row();
        row.first.filter(|_| row.absent == IfAbsent::Default).map(|first| first())
    }

    /// The payload of a new node's file: `brought`, or else the initial payload in the table;
    /// `None` if a new node has no such file.
    pub(super) fn or_first(self, brought: Option<Payload>) -> Result<Option<Payload>, DecodeError> {
        let row = self.row();
        match (brought, row.first) {
            (None, Some(first)) if row.absent != IfAbsent::Default => first().map(|first| Some(Zeroizing::new(first))),
            (brought, _) => Ok(brought),
        }
    }

    /// True if a backup contains files of this kind. It leaves out what a restored node must not
    /// have twice: keys whose use is remembered by others (introduction points with their replay
    /// logs, WireGuard), which the node makes again.
    pub(super) fn is_backed_up(self) -> bool {
        !matches!(self, Self::Pending | Self::Restored | Self::WireguardKey | Self::IntroPoint)
    }

    /// True if the presence of this file shows that the directory holds a node, complete or not.
    pub(super) fn shows_a_node(self) -> bool {
        self == Self::Pending || self.row().absent != IfAbsent::Default
    }
}

fn zero() -> Result<Vec<u8>, DecodeError> {
    codec::encode(&0u64)
}

/// An empty list, which has the same encoding for every type of entry.
fn empty_list() -> Result<Vec<u8>, DecodeError> {
    codec::encode(&Vec::<Chain>::new())
}
