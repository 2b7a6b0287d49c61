//! Flags, for one context at one time.

use std::cell::OnceCell;

use serde_json::Value;

use super::{LocalValue, bucket};
use crate::flags::definitions::{Condition, Definitions, Enrollment, Entity, Flag, Holdout, Rules, State, Test};
use crate::flags::{FlagContext, InconclusiveReason};
use crate::sys::clock::{Clock, WallNanos};

/// Evaluates flags, each as often as it is asked, or once.
pub(super) struct Pass<'d, 'c> {
    pub(super) definitions: &'d Definitions,
    pub(super) context: &'c FlagContext,
    pub(super) distinct_id: &'c str,
    now: OnceCell<WallNanos>,
    pub(super) memory: Option<Memory<'d>>,
}

/// What was found out, by place among the definitions.
pub(super) struct Memory<'d> {
    pub(super) flags: Vec<Option<Result<LocalValue<'d>, InconclusiveReason>>>,
    pub(super) cohorts: Vec<Option<Result<bool, InconclusiveReason>>>,
}

/// A flag under evaluation.
#[derive(Clone, Copy)]
struct Case<'d> {
    flag: &'d Flag,
    rules: &'d Rules,
}

/// What a condition says.
#[derive(Clone, Copy)]
enum Verdict<'d> {
    Matches(LocalValue<'d>),
    /// Somebody is meant, and left out by the rollout.
    LeftOut,
    DoesNot,
}

/// What a condition of which this is not known would have made of the flag: a certain value or nothing; `None`: who knows.
type Possible<'d> = Option<LocalValue<'d>>;

/// That conditions were passed of which it is not known whether they match.
struct Doubt<'d> {
    why: InconclusiveReason,
    possible: Possible<'d>,
}

impl<'d, 'c> Pass<'d, 'c> {
    /// `now`: `None` for the machine's clock.
    pub(super) fn new(
        definitions: &'d Definitions,
        context: &'c FlagContext,
        now: Option<WallNanos>,
    ) -> Result<Self, InconclusiveReason> {
        let distinct_id = context.distinct_id.as_deref().filter(|id| !id.is_empty());
        let distinct_id = distinct_id.ok_or(InconclusiveReason::NoDistinctId)?;
        let now = now.map_or_else(OnceCell::new, OnceCell::from);
        Ok(Self { definitions, context, distinct_id, now, memory: None })
    }

    /// One time for the whole pass. The machine's clock is asked only if it matters: that takes as long as a bucket.
    pub(super) fn now(&self) -> WallNanos {
        *self.now.get_or_init(|| Clock::System.wall_nanos())
    }

    /// From now on each flag and each cohort is evaluated once.
    pub(super) fn remember(&mut self) {
        let Definitions { flags, cohorts, .. } = self.definitions;
        self.memory = Some(Memory { flags: vec![None; flags.len()], cohorts: vec![None; cohorts.len()] });
    }

    pub(super) fn flag(&mut self, at: usize) -> Result<LocalValue<'d>, InconclusiveReason> {
        if let Some(known) = self.memory.as_ref().and_then(|memory| *memory.flags.get(at)?) {
            return known;
        }
        let value = self.evaluate(self.definitions.flags.get(at).ok_or(InconclusiveReason::UnknownFlag)?);
        if let Some(slot) = self.memory.as_mut().and_then(|memory| memory.flags.get_mut(at)) {
            *slot = Some(value);
        }
        value
    }

    fn evaluate(&mut self, flag: &'d Flag) -> Result<LocalValue<'d>, InconclusiveReason> {
        let rules = match &flag.state {
            State::Unreadable => return Err(InconclusiveReason::Malformed),
            State::Inactive => return Ok(LocalValue::Boolean(false)),
            State::Active(rules) => rules,
        };
        if rules.keeps_experience {
            return Err(InconclusiveReason::ExperienceContinuity);
        }
        if let Some(fault) = flag.fault {
            return Err(fault);
        }
        let case = Case { flag, rules };
        if let Some(enrollment) = &rules.enrollment
            && let Some(is_enrolled) = self.enrolled(case, enrollment)?
        {
            return Ok(LocalValue::Boolean(is_enrolled));
        }
        if let Some(holdout) = &rules.holdout
            && self.is_held_out(case, holdout)?
        {
            return Ok(LocalValue::Variant(&holdout.variant));
        }
        self.by_conditions(case)
    }

    fn by_conditions(&mut self, case: Case<'d>) -> Result<LocalValue<'d>, InconclusiveReason> {
        let mut doubt: Option<Doubt<'d>> = None;
        for condition in &case.rules.conditions {
            match self.verdict(case, condition) {
                Ok(Verdict::Matches(value)) => {
                    return match doubt {
                        Some(Doubt { why, possible }) if possible != Some(value) => Err(why),
                        _ => Ok(value),
                    };
                }
                Ok(Verdict::LeftOut) if case.rules.early_exit => break,
                Ok(Verdict::LeftOut | Verdict::DoesNot) => {}
                Err(why) => match (self.possible(case, condition), &mut doubt) {
                    (Verdict::DoesNot, _) => {}
                    (verdict, None) => doubt = Some(Doubt { why, possible: verdict.value() }),
                    (verdict, Some(doubt)) if doubt.possible != verdict.value() => doubt.possible = None,
                    (_, Some(_)) => {}
                },
            }
        }
        doubt.map_or(Ok(LocalValue::Boolean(false)), |doubt| Err(doubt.why))
    }

    fn verdict(&mut self, case: Case<'d>, condition: &'d Condition) -> Result<Verdict<'d>, InconclusiveReason> {
        if !self.all_hold(&condition.tests)? {
            return Ok(Verdict::DoesNot);
        }
        let id = self.bucketed(case.rules, &condition.of)?;
        if is_left_out(case.flag, condition, id) {
            return Ok(Verdict::LeftOut);
        }
        Ok(Verdict::Matches(value_of(case, condition, id)))
    }

    /// What the condition would say if its tests held.
    fn possible(&self, case: Case<'d>, condition: &'d Condition) -> Verdict<'d> {
        let given = condition.variant.and_then(|variant| case.rules.variants.get(variant));
        match self.bucketed(case.rules, &condition.of) {
            Ok(id) if is_left_out(case.flag, condition, id) => {
                if case.rules.early_exit {
                    Verdict::LeftOut
                } else {
                    Verdict::DoesNot
                }
            }
            Ok(id) => Verdict::Matches(value_of(case, condition, id)),
            // Whoever it is: a rollout could leave them out, and that could end the flag.
            Err(_) if case.rules.early_exit => Verdict::LeftOut,
            Err(_) if case.rules.variants.is_empty() => Verdict::Matches(LocalValue::Boolean(true)),
            Err(_) => given.map_or(Verdict::LeftOut, |given| Verdict::Matches(LocalValue::Variant(&given.key))),
        }
    }

    /// `None`: nobody has asked for it or against it, so the conditions decide.
    fn enrolled(&mut self, case: Case<'d>, enrollment: &'d Enrollment) -> Result<Option<bool>, InconclusiveReason> {
        let given = &self.context.person_properties;
        match enrollment {
            Enrollment::Property(name) => match given.get(&**name) {
                Some(answer) => Ok(Some(*answer == Value::Bool(true) || answer.as_str() == Some("true"))),
                // PostHog may have it.
                None => Err(InconclusiveReason::MissingProperty),
            },
            Enrollment::Condition(condition) => {
                let names = condition.tests.iter().filter_map(|test| match test {
                    Test::Property(property) => Some(&*property.name),
                    _ => None,
                });
                if !names.into_iter().any(|name| given.contains_key(name)) {
                    return Err(InconclusiveReason::MissingProperty);
                }
                Ok(Some(matches!(self.verdict(case, condition)?, Verdict::Matches(_))))
            }
        }
    }

    fn is_held_out(&self, case: Case<'d>, holdout: &Holdout) -> Result<bool, InconclusiveReason> {
        let id = self.bucketed(case.rules, &case.rules.of)?;
        Ok(holdout.share >= 1.0 || bucket::of_holdout(id) <= holdout.share)
    }

    /// By whose id it is decided who is in a rollout, and who gets which variant.
    fn bucketed(&self, rules: &Rules, of: &Entity) -> Result<&'c str, InconclusiveReason> {
        match of {
            Entity::Person if rules.by_device => {
                let device_id = self.context.device_id.as_deref().filter(|id| !id.is_empty());
                device_id.ok_or(InconclusiveReason::MissingDeviceId)
            }
            Entity::Person => Ok(self.distinct_id),
            Entity::Group(name) => self.group(name),
            Entity::UnknownGroup => Err(InconclusiveReason::Malformed),
        }
    }

    /// The key of the person's group of a type.
    pub(super) fn group(&self, name: &str) -> Result<&'c str, InconclusiveReason> {
        let key = self.context.groups.get(name).filter(|key| !key.is_empty());
        key.map(String::as_str).ok_or(InconclusiveReason::MissingGroup)
    }
}

impl<'d> Verdict<'d> {
    fn value(self) -> Possible<'d> {
        match self {
            Verdict::Matches(value) => Some(value),
            Verdict::LeftOut | Verdict::DoesNot => None,
        }
    }
}

fn is_left_out(flag: &Flag, condition: &Condition, id: &str) -> bool {
    condition.share.is_some_and(|share| share < 1.0 && bucket::of_rollout(&flag.key, id) > share)
}

/// What somebody gets for whom the condition matches.
fn value_of<'d>(case: Case<'d>, condition: &Condition, id: &str) -> LocalValue<'d> {
    let variants = &case.rules.variants;
    if variants.is_empty() {
        return LocalValue::Boolean(true);
    }
    let given = condition.variant.and_then(|at| variants.get(at));
    let variant = given.or_else(|| {
        let bucket = bucket::of_variants(&case.flag.key, id);
        variants.iter().find(|variant| bucket < variant.upper)
    });
    variant.map_or(LocalValue::Boolean(true), |variant| LocalValue::Variant(&variant.key))
}
