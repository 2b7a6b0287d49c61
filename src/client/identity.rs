//! Calls about persons and groups: each is an event of its own, captured like any other.
//!
//! What a call has no argument for (a time, a uuid, `$set_once` beside `$set`, no GeoIP) is said by making the event and capturing it:
//! [`Event::identify`], [`Event::set_person`], [`Event::alias`], [`Event::group_identify`].

use serde::Serialize;

use super::Client;
use super::receipt::Receipt;
use crate::event::Event;

impl Client {
    /// Says that this person exists, and sets properties of the person (`$identify` with `$set`): those of a map, a struct, or a
    /// sequence of pairs; `()` for none. Every call is sent. A blank id is `Dropped(EmptyDistinctId)`, and recorded.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::Event;
    ///
    /// client.identify("user_1", [("plan", "pro")]);
    /// client.identify("user_1", ());
    /// // With what the call has no argument for:
    /// client.capture(Event::identify("user_1").person_property("plan", "pro").person_property_once("source", "ads").disable_geoip());
    /// ```
    pub fn identify(&self, distinct_id: impl AsRef<str>, props: impl Serialize) -> Receipt {
        self.capture(Event::identify(distinct_id).person_properties(props))
    }

    /// Sets properties of a person (a `$set` event). Without any it is `Dropped(NothingToSet)`.
    pub fn set_person(&self, distinct_id: impl AsRef<str>, props: impl Serialize) -> Receipt {
        self.capture(Event::set_person(distinct_id).person_properties(props).must_set_something())
    }

    /// Sets properties of a person, each if the person has none of that name yet (a `$set` event with `$set_once`). Without any it is
    /// `Dropped(NothingToSet)`.
    pub fn set_person_once(&self, distinct_id: impl AsRef<str>, props: impl Serialize) -> Receipt {
        self.capture(Event::set_person(distinct_id).person_props_once(props).must_set_something())
    }

    /// Says that whoever is `alias` is the person `previous_id` (`$create_alias`). Blank ids are `Dropped(EmptyDistinctId)` and
    /// `Dropped(EmptyAlias)`, and recorded.
    pub fn alias(&self, previous_id: impl AsRef<str>, alias: impl AsRef<str>) -> Receipt {
        self.capture(Event::alias(previous_id, alias))
    }

    /// Says that this group exists, and sets properties of the group (`$groupidentify` with `$group_set`). The key is a string or a number.
    /// Later events are not put into the group: [`Event::group`] does that. Blank types and keys are `Dropped(EmptyGroupType)` and
    /// `Dropped(EmptyGroupKey)`, and recorded.
    pub fn group_identify(
        &self,
        group_type: impl AsRef<str>,
        group_key: impl Serialize,
        props: impl Serialize,
    ) -> Receipt {
        self.capture(Event::group_identify(group_type, group_key).group_props(props))
    }
}
