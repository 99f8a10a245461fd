//! The files of a state directory: one table, a row for each kind.
//!
//! Versions of the directory are counted from 1. A file's header carries the version that brought
//! the file's present format, so that one number orders directories, kinds and formats alike. A new
//! kind, or a new format of an old one, is a row here, a higher [`VERSION`], and a migration (see
//! [`super::migrations`]) where an older directory must change for it.

use rustbalance_gossip::codec::{self, DecodeError};
use rustbalance_gossip::record::Chain;
use zeroize::Zeroizing;

use super::error::Damage;
use super::file::Payload;

/// The version of the state directory that this build writes. Older ones are migrated, newer ones
/// refused.
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

/// What is known of a kind of file.
pub(super) struct Row {
    /// Its name, or, for [`Place::Point`], the ending of its name.
    pub(super) name: &'static str,
    /// Where it lies.
    pub(super) place: Place,
    /// The first version of the directory that has it.
    pub(super) since: u32,
    /// The version of the directory that brought its present format.
    pub(super) format: u32,
    /// The largest payload, in bytes.
    pub(super) max_payload: usize,
    /// What it means that a node lacks it.
    pub(super) absent: Absent,
    /// What a new node's file holds unless `init` or `join` brings more, and what an absent file
    /// with a default stands for.
    pub(super) first: Option<First>,
    /// True if the file is written once and never replaced: keys.
    pub(super) once: bool,
    /// What to do when it is lost or damaged.
    pub(super) way_out: &'static str,
}

/// Where files of a kind lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the state directory: one file.
    Directory,
    /// In the folder of each service: one file each.
    Service,
    /// In the folder `intro` of each service: any number.
    Point,
}

/// Encodes what a file holds at first.
type First = fn() -> Result<Vec<u8>, DecodeError>;

/// What it means that a whole node lacks a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// The directory is damaged.
    Required,
    /// The directory of a publisher is damaged. Workers must not have the file.
    PublishersOnly,
    /// The default: [`Row::first`], or, where the row has none, what the kind's own documentation
    /// says.
    Default,
}

/// Of a row with the values that most rows have.
const fn row(name: &'static str, way_out: &'static str) -> Row {
    let (place, since, format, max_payload) = (Place::Directory, 1, 1, SMALL);
    Row { name, place, since, format, max_payload, absent: Absent::Required, first: None, once: false, way_out }
}

/// Makes [`Kind`] and its table.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = $row:expr;)+) => {
        /// The files of a state directory.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind {
            $($(#[doc = $doc])+ $kind,)+
        }

        impl Kind {
            /// All of them, in the order in which `init` and `join` write them.
            pub(super) const ALL: &[Self] = &[$(Self::$kind),+];

            /// What is known of it.
            pub(super) const fn row(self) -> Row {
                match self {
                    $(Self::$kind => $row,)+
                }
            }
        }
    };
}

kinds! {
    /// `pending`: an `init` or `join` is under way; gone once it is done.
    Pending = Row {
        absent: Absent::Default,
        ..row("pending", "Remove it if there is no key in the folder `services` beside it, and run `init` or `join` \
            again; otherwise move the whole directory to a safe place first.")
    };
    /// `version`: the version of the directory, and the release that brought the directory to it
    /// (see [`super::version`]). Absent: version 1, which had no such file.
    Version = Row {
        since: 2,
        format: 2,
        absent: Absent::Default,
        ..row("version", "Remove it: `rustbalance run` writes it again.")
    };
    /// `node.key`: the node's seed.
    NodeKey = Row { once: true, ..row("node.key", FROM_BACKUP_OR_JOIN) };
    /// `master.pub`: the master address, as text. Its format is 2 only so that a release that knows
    /// version 1 alone refuses the directory with the right reason; the payload has not changed.
    MasterPub = Row { format: 2, once: true, ..row("master.pub", FROM_BACKUP_OR_JOIN) };
    /// `authority.key`: the seed of the certificate-signing key.
    AuthorityKey = Row { absent: Absent::PublishersOnly, once: true, ..row("authority.key", FROM_PUBLISHER) };
    /// `discovery.key`: the keys of the restricted discovery.
    DiscoveryKey = row("discovery.key", FROM_BACKUP_OR_JOIN);
    /// `points.key`: what the keys of the node's introduction points are derived from.
    PointSeed = Row { once: true, ..row("points.key", FROM_BACKUP_OR_JOIN) };
    /// `boot`: the number of the last start of the daemon.
    Boot = Row { first: Some(zero), ..row("boot", FROM_BACKUP_OR_JOIN) };
    /// `term`: the highest term known.
    Term = Row { first: Some(zero), ..row("term", FROM_BACKUP_OR_JOIN) };
    /// `invitations`: those known.
    Invitations = Row { max_payload: 8 << 20, first: Some(empty_list), ..row("invitations", FROM_OTHER_NODE) };
    /// `revocations`: those known.
    Revocations = Row { max_payload: LIST, first: Some(empty_list), ..row("revocations", FROM_BACKUP_OR_JOIN) };
    /// `members`: certificates of other members.
    Members = Row { max_payload: LIST, first: Some(empty_list), ..row("members", FROM_OTHER_NODE) };
    /// `draining`: there while the node takes no new clients, by `drain`; `resume` removes it. Its
    /// payload is empty.
    Draining = Row {
        absent: Absent::Default,
        ..row("draining", "Remove it, and run `rustbalance drain` again if this node is to take no clients.")
    };
    /// `alarms`: publishers' tokens that more nodes have used than may. Absent: none.
    Alarms = Row {
        max_payload: LIST,
        absent: Absent::Default,
        first: Some(empty_list),
        ..row("alarms", "Put it back from a backup of this directory, or remove it: alarms of old tokens are forgotten then.")
    };
    /// `facts`: those of kinds that have no file of their own. Absent: none.
    Facts = Row {
        since: 2,
        format: 2,
        max_payload: LIST,
        absent: Absent::Default,
        first: Some(empty_list),
        ..row("facts", "Put it back from a backup of this directory, or remove it: other nodes hand over again what it held.")
    };
    /// `services/<address>/identity.key`: the expanded identity key of the service.
    IdentityKey = Row {
        place: Place::Service,
        since: 2,
        format: 2,
        absent: Absent::PublishersOnly,
        once: true,
        ..row("identity.key", FROM_PUBLISHER)
    };
    /// `services/<address>/revisions`: the highest revision used in each period.
    Revisions = Row { place: Place::Service, first: Some(empty_list), ..row("revisions", FROM_BACKUP_OR_JOIN) };
    /// `services/<address>/intro/<nonce>.point`: an introduction point. A service may have none.
    IntroPoint = Row {
        place: Place::Point,
        absent: Absent::Default,
        ..row("point", "Remove it: the node makes a new introduction point.")
    };
    /// `membership`: the node's own certificates. Written last: its presence says that the state is
    /// whole.
    Membership = row("membership", FROM_BACKUP_OR_JOIN);
}

impl Kind {
    /// Those of which there is one file in the state directory, or one in the folder of each
    /// service.
    pub(super) fn at(place: Place) -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(move |kind| kind.row().place == place)
    }

    /// The one whose files have this name or ending.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Its name, or, for [`Place::Point`], the ending of its name.
    pub(super) fn name(self) -> &'static str {
        self.row().name
    }

    /// The largest payload, in bytes.
    pub(super) fn max_payload(self) -> usize {
        self.row().max_payload
    }

    /// Whether this build reads a file of this format number.
    pub(super) fn check_format(self, format: u32) -> Result<(), Damage> {
        let Row { since, format: newest, .. } = self.row();
        match format {
            format if format == newest => Ok(()),
            format if format > newest => Err(Damage::Newer { format, newest }),
            format if format >= since => Err(Damage::Older { format, newest }),
            _ => Err(Damage::Header),
        }
    }

    /// What an absent file stands for, encoded; `None` if it must not be absent, or if its absence
    /// is no value.
    pub(super) fn default(self) -> Option<Result<Vec<u8>, DecodeError>> {
        let row = self.row();
        row.first.filter(|_| row.absent == Absent::Default).map(|first| first())
    }

    /// What was brought for a new node's file, or what the table says that the file holds first;
    /// `None` if a new node has no such file.
    pub(super) fn or_first(self, brought: Option<Payload>) -> Result<Option<Payload>, DecodeError> {
        let row = self.row();
        match (brought, row.first) {
            (None, Some(first)) if row.absent != Absent::Default => first().map(|first| Some(Zeroizing::new(first))),
            (brought, _) => Ok(brought),
        }
    }

    /// True if its presence says that a node is there, whole or not.
    pub(super) fn tells_of_a_node(self) -> bool {
        self == Self::Pending || self.row().absent != Absent::Default
    }
}

fn zero() -> Result<Vec<u8>, DecodeError> {
    codec::encode(&0u64)
}

/// All empty lists are encoded alike.
fn empty_list() -> Result<Vec<u8>, DecodeError> {
    codec::encode(&Vec::<Chain>::new())
}
