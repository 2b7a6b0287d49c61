//! What the moment of capture adds to an event, without ever replacing what the caller said.

use super::builder::Event;
use super::finish::Stamp;
use crate::record::{Class, Flags, Pairs};

impl Event {
    /// Whether it says of nobody that he did it, and somebody has to be found.
    #[inline]
    pub(crate) fn is_anonymous(&self) -> bool {
        self.draft.anonymous
    }

    /// It is done by nobody in particular: under a distinct id of its own, and without a person (unless the event says otherwise).
    pub(crate) fn attribute_to_nobody(&mut self, own_id: &str) {
        self.set_distinct_id(own_id);
        self.draft.flags.insert(Flags::PERSONLESS);
    }

    /// Adds those properties that are not there yet, whether as properties or as hints.
    pub(crate) fn add_absent(&mut self, pairs: &Pairs) {
        for (name, pair) in pairs.each() {
            if !self.has_name(name) && !self.hints(name) {
                self.draft.push_entry(pair);
            }
        }
    }

    /// Whether a hint says that. As a property it would count for more than the hint when it is sent.
    fn hints(&self, name: &[u8]) -> bool {
        let flag = match name {
            b"$process_person_profile" => Flags::PERSONLESS,
            b"$geoip_disable" => Flags::GEOIP_DISABLE,
            _ => return false,
        };
        self.draft.flags.contains(flag)
    }

    /// Uuid and time, unless the caller gave them: hooks see those that the event will have.
    pub(crate) fn stamped(mut self, stamp: &Stamp) -> Self {
        self.draft.uuid.get_or_insert(stamp.uuid);
        self.draft.timestamp.get_or_insert(stamp.now_nanos);
        self
    }

    /// Whether it is an exception, or was one before it was renamed.
    #[inline]
    pub(crate) fn is_exception(&self) -> bool {
        self.draft.class == Class::Exception
    }
}
