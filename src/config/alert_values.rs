//! The values of the keys in `[alerts]` that no other table has.

use std::collections::BTreeSet;
use std::ops::RangeFull;

use toml::de::DeValue;

use super::keys::{Refused, Value, quoted, quoted_list, texts};
use crate::alerts::{AlertEvent, Argv, Webhook};

/// A program with its arguments. Messages leave the arguments out, because they may be secret.
impl Value for Argv {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        let why = "it is a list of texts, the program and its arguments, as in [\"/usr/local/bin/page\", \"--ops\"]: there is no \
                   shell that takes one text apart";
        let list = texts(value).ok_or_else(|| Refused::Because(why.into()))?;
        Self::try_from(list).map_err(|error| Refused::Because(error.to_string()))
    }

    fn show(&self) -> String {
        quoted_list(self.entries())
    }

    fn logged(&self) -> String {
        quoted(self.program())
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        Self::try_from(vec![format!("{}-another", self.program())]).unwrap()
    }
}

impl Value for Webhook {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        let text = value.as_str().unwrap_or_default();
        text.parse().map_err(|error: <Self as std::str::FromStr>::Err| Refused::Because(error.to_string()))
    }

    fn show(&self) -> String {
        quoted(&self.url())
    }

    fn logged(&self) -> String {
        self.shown().into()
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        format!("{}a", self.url()).parse().unwrap()
    }
}

/// Names of events.
impl Value for BTreeSet<AlertEvent> {
    type Allowed = RangeFull;

    fn read(value: &DeValue<'_>, _allowed: &RangeFull) -> Result<Self, Refused> {
        let names = texts(value).filter(|names| !names.is_empty()).ok_or_else(|| {
            Refused::Because("it is a list of at least one event, as in [\"target_down\", \"node_lost\"]".into())
        })?;
        let events = names.iter().map(|name| name.parse()).collect::<Result<_, _>>();
        events.map_err(|error: <AlertEvent as std::str::FromStr>::Err| Refused::Because(error.to_string()))
    }

    fn show(&self) -> String {
        quoted_list(self.iter().map(|event| event.name()))
    }

    #[cfg(test)]
    fn another(&self, _allowed: &RangeFull) -> Self {
        BTreeSet::from([AlertEvent::PublisherChanged])
    }
}
