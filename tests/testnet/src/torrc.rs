//! The configuration of each tor process, and Arti's.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use crate::facts::Facts;
use crate::relay::{Relay, Role};

/// Length of a time period of onion services in voting intervals. C tor fixes it under
/// `TestingTorNetwork`.
pub(crate) const ROUNDS_PER_PERIOD: u64 = 24;

/// Interval in seconds at which authorities that have no consensus make one, counted from the
/// epoch.
pub(crate) const FIRST_INTERVAL: u64 = 10;
/// Seconds for their votes before each such consensus, and the same time again for their
/// signatures.
pub(crate) const FIRST_DELAY: u64 = 2;

/// Minimum circuit build timeout, in milliseconds. C tor learns the timeout from its circuits: 1 to
/// 2 s on the public network, 40 ms here. Every circuit that a busy machine delays for a moment
/// would then fail, and tor would hold that against the introduction point at its end.
const LEAST_CIRCUIT_TIMEOUT: u64 = 1500;

/// The lines that every process needs. The tor process ends with the process `owner`.
fn common(folder: &Path, facts: &Facts, owner: u32) -> String {
    let folder = folder.display();
    let mut text = format!(
        "TestingTorNetwork 1
PathsNeededToBuildCircuits 0.67
TestingDirAuthVoteHSDir *
TestingDirAuthVoteGuard *
TestingMinExitFlagThreshold 0
V3AuthNIntervalsValid 2
RunAsDaemon 0
ShutdownWaitLength 0
SafeLogging 0
LogTimeGranularity 1
CookieAuthentication 1
Sandbox 0
AvoidDiskWrites 1
__OwningControllerProcess {owner}
DataDirectory {folder}
Log notice file {folder}/notice.log
"
    );
    for authority in facts.authorities() {
        let _ = writeln!(
            text,
            "DirAuthority {} orport={} no-v2 v3ident={} 127.0.0.1:{} {}",
            authority.nickname,
            authority.or_port,
            authority.v3_identity.as_deref().unwrap_or_default(),
            authority.dir_port.unwrap_or_default(),
            authority.rsa_fingerprint,
        );
    }
    text
}

/// A relay's or an authority's configuration.
pub(crate) fn relay(relay: &Relay, facts: &Facts) -> String {
    let mut text = common(&relay.folder(), facts, facts.owner);
    let _ = write!(
        text,
        "Nickname {}
AssumeReachable 1
SocksPort 0
ControlPort 127.0.0.1:{}
ORPort 127.0.0.1:{}
Address 127.0.0.1
ContactInfo nobody@test.test
ServerDNSDetectHijacking 0
ServerDNSTestAddresses
ServerDNSResolvConfFile /dev/null
ServerDNSAllowBrokenConfig 1
DoSCircuitCreationEnabled 0
DoSConnectionEnabled 0
",
        relay.nickname, relay.control_port, relay.or_port
    );
    match relay.role {
        Role::Authority => {
            let vote = facts.voting_interval;
            let minutes = (ROUNDS_PER_PERIOD * vote).div_ceil(60);
            let _ = write!(
                text,
                "DirPort 127.0.0.1:{}
ExitRelay 0
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
TestingV3AuthInitialVotingInterval {FIRST_INTERVAL}
TestingV3AuthInitialVoteDelay {FIRST_DELAY}
TestingV3AuthInitialDistDelay {FIRST_DELAY}
V3AuthVotingInterval {vote}
V3AuthVoteDelay 4
V3AuthDistDelay 4
ConsensusParams hsdir_interval={minutes} cbtmintimeout={LEAST_CIRCUIT_TIMEOUT}
AuthDirVoteStableGuaranteeMinUptime 1 second
AuthDirVoteStableGuaranteeMTBF 1 second
V3BandwidthsFile {}/bandwidths
",
                relay.dir_port.unwrap_or_default(),
                relay.folder().display()
            );
        }
        Role::Exit => text.push_str(
            "ExitRelay 1
ExitPolicyRejectPrivate 0
ExitPolicy accept 127.0.0.0/8:*
ExitPolicy accept *:*
",
        ),
        Role::Middle => text.push_str("ExitRelay 0\nExitPolicy reject *:*\n"),
    }
    text
}

/// The file that a bandwidth scanner would write for an authority: all relays are alike. Without
/// it, a relay weighs what it carried lately, for most of them nothing, and all services choose the
/// same few relays for their introduction points.
pub(crate) fn bandwidths(facts: &Facts, now: u64) -> String {
    let mut text = format!("{now}\n");
    for relay in &facts.relays {
        let _ = writeln!(text, "node_id=${} bw=1000", relay.rsa_fingerprint);
    }
    text
}

/// A client's configuration. The client chooses its ports itself and writes them to its folder.
pub(crate) fn client(folder: &Path, facts: &Facts) -> String {
    let mut text = common(folder, facts, std::process::id());
    let _ = write!(
        text,
        "SocksPort 127.0.0.1:auto ExtendedErrors
ControlPort 127.0.0.1:auto
ControlPortWriteToFile {}/control-port
UseMicrodescriptors 1
ClientOnly 1
",
        folder.display()
    );
    text
}

/// Arti's configuration, without the folders of its storage.
pub(crate) fn arti(facts: &Facts) -> String {
    let mut text = String::from(
        "# For arti-client: a private network on loopback.

[storage.permissions]
dangerously_trust_everyone = true

[tor_network]
fallback_caches = [
",
    );
    for relay in &facts.relays {
        let _ = writeln!(
            text,
            "  {{ rsa_identity = \"{}\", ed_identity = \"{}\", orports = [\"127.0.0.1:{}\"] }},",
            relay.rsa_fingerprint, relay.ed25519_id, relay.or_port
        );
    }
    let list = |each: &dyn Fn(&Relay) -> String| facts.authorities().map(each).collect::<Vec<_>>().join(", ");
    let identities = list(&|authority| format!("\"{}\"", authority.v3_identity.as_deref().unwrap_or_default()));
    let addresses = list(&|authority| format!("[\"127.0.0.1:{}\"]", authority.dir_port.unwrap_or_default()));
    let _ = write!(
        text,
        "]

[tor_network.authorities]
v3idents = [{identities}]
uploads = [{addresses}]
downloads = [{addresses}]
votes = [{addresses}]

[path_rules]
ipv4_subnet_family_prefix = 33
ipv6_subnet_family_prefix = 129

[address_filter]
allow_local_addrs = true

[override_net_params]
guard-min-filtered-sample-size = 5
guard-n-primary-guards = 4
guard-n-primary-guards-to-use = 2
guard-n-primary-dir-guards-to-use = 3
cbtmintimeout = 8000
cbtinitialtimeout = 10000
"
    );
    text
}

/// How long a time period of onion services lasts.
pub(crate) fn time_period(facts: &Facts) -> Duration {
    Duration::from_secs(ROUNDS_PER_PERIOD * facts.voting_interval)
}
