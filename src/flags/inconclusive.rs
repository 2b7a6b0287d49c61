//! Why a flag cannot be evaluated here.

/// Why a flag cannot be evaluated here: PostHog has to be asked, for it knows more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum InconclusiveReason {
    /// There is no such flag among the definitions.
    #[error("there is no such flag among the definitions")]
    UnknownFlag,
    /// A condition is on a property that was not given.
    #[error("a property that a condition is on was not given")]
    MissingProperty,
    /// A condition's operator is none of those that this version knows.
    #[error("an operator of a condition is not known")]
    UnknownOperator,
    /// A condition compares with something that its operator cannot compare with.
    #[error("what a condition compares with cannot be used")]
    UnusableCondition,
    /// A property that was given is nothing that the condition's operator can compare.
    #[error("a property that was given cannot be compared")]
    UnusableProperty,
    /// A condition is on a cohort that is not among the definitions: one whose members are a list that PostHog keeps.
    #[error("a cohort of a condition is not among the definitions")]
    UnknownCohort,
    /// A condition is on another flag, which cannot be evaluated here.
    #[error("another flag that a condition is on cannot be evaluated here")]
    UnresolvedDependency,
    /// Flags or cohorts depend on each other in a circle, or too deep.
    #[error("the flags that it depends on form a circle, or too long a chain")]
    TooDeep,
    /// The flag is rolled out by group, and the person's group of that type was not given.
    #[error("the group by which the flag is rolled out was not given")]
    MissingGroup,
    /// The flag is rolled out by device, and no device id was given.
    #[error("the device by which the flag is rolled out was not given")]
    MissingDeviceId,
    /// The flag keeps the value that a person had before it was identified, which only PostHog remembers.
    #[error("the flag keeps earlier values for each person, which only PostHog knows")]
    ExperienceContinuity,
    /// There is no distinct id: neither was one given, nor is a request being served that has one.
    #[error("there is nobody to evaluate the flag for")]
    NoDistinctId,
    /// The definition of the flag cannot be read, or something in it is new to this version.
    #[error("the definition of the flag cannot be read")]
    Malformed,
}
