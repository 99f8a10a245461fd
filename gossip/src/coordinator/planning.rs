//! What should stand in the descriptor: gathers the candidates, and asks [`crate::plan`] and
//! [`crate::outage`].

use super::{Action, Coordinator, Now};
use crate::id::NodeId;
use crate::outage::{self, Hidden};
use crate::plan::{Candidate, choose};
use crate::record::{IntroPoint, Phase};
use crate::view::Changes;

impl Coordinator {
    /// What the descriptor should list, by session key. Every node computes it, the publisher after
    /// every event, the others at each heartbeat. Empty if no node can serve: then the published
    /// points are left as they are.
    pub fn desired_points(&self) -> &[(NodeId, IntroPoint)] {
        &self.choice.points
    }

    /// Rises with every change of [`Coordinator::desired_points`].
    pub fn desired_version(&self) -> u64 {
        self.version
    }

    pub(super) fn plan(&mut self, changes: &Changes, now: Now, out: &mut Vec<Action>) {
        let count = now.unix / self.settings.rotation.max(1);
        let over = self.hidden_until.is_some_and(|at| now.mono >= at);
        self.unplanned |= changes.points || count != self.count || over;
        // In a large cluster there are many changes a second, and choosing costs more than taking
        // one in.
        let pressing = self.election.leading().is_some() || self.beaten == Some(now.mono);
        if !self.unplanned || !pressing {
            return;
        }
        self.unplanned = false;
        self.count = count;
        let secret = self.settings.hide_outages.as_ref();
        let hidden = secret.map(|secret| outage::hidden(&self.view, secret, &self.choice, now.mono));
        let Hidden { points: hidden, until } = hidden.unwrap_or_default();
        let choice = {
            let heard =
                self.view.members().filter(|node| node.alive && !matches!(node.phase(), Phase::Gone | Phase::Joining));
            let heard = heard.filter_map(|node| Some((node, node.intro_points.as_ref()?.points.as_slice())));
            let silent = hidden.iter().filter_map(|(node, points)| Some((self.view.member(node)?, points.as_slice())));
            let candidate = |(node, points): (&crate::view::MemberView, _)| Candidate {
                node: node.node(),
                phase: node.phase(),
                weight: node.weight(),
                points,
            };
            let candidates: Vec<Candidate<'_>> = heard.chain(silent).map(candidate).collect();
            choose(&candidates, &self.choice, self.settings.intro_points, count)
        };
        if choice.points != self.choice.points {
            self.version += 1;
            out.push(Action::DesiredChanged);
        }
        self.hidden_until = until;
        self.choice = choice;
    }
}
