//! Who has decided what. `backend/redis/decide.lua` and `standing.lua` are this again, inside the
//! store; `backend/embedded` calls it.

use crate::approval::{Answer, Choice, Digest, Standing, is_policy};

/// What a question says about who may decide it, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Of what is asked.
    pub digest: Digest,
    /// Which request it is: one that is made anew has another nonce. A request that version 0.1 made has
    /// none.
    pub nonce: Option<String>,
    /// Since when.
    pub asked_at: i64,
    /// Until then, unless it was extended.
    pub deadline: i64,
    /// So many must approve.
    pub quorum: u32,
    /// Who asks.
    pub requester: Option<String>,
    /// Who asks may approve.
    pub self_approval: bool,
    /// Who may decide; anybody when it is empty.
    pub approvers: Vec<String>,
    /// The arguments may be changed.
    pub editable: bool,
    /// The asker has withdrawn it.
    pub withdrawn: bool,
}

/// What was said to one request so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ballot {
    /// What the votes are about.
    pub digest: Option<Digest>,
    /// The nonce of the request that the votes are about.
    pub nonce: Option<String>,
    /// Who approved, and by which decision.
    pub votes: Vec<(String, String)>,
    /// What counts.
    pub decided: Option<Decided>,
    /// The deadline that holds instead of the question's own, unless the question was asked anew
    /// after it.
    pub extended: Option<i64>,
}

/// The decision that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Its id.
    pub decision: String,
    /// What.
    pub choice: Choice,
    /// Who.
    pub by: String,
    /// When.
    pub at: i64,
}

/// One decision, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Vote<'a> {
    /// Its id.
    pub decision: &'a str,
    /// What.
    pub choice: Choice,
    /// Who.
    pub by: &'a str,
    /// Of what the person saw.
    pub digest: &'a Digest,
    /// The nonce of the request that the person saw, if the vote says that.
    pub nonce: Option<&'a str>,
    /// A policy that counts towards a quorum of people; see [`Decision::in_quorum`].
    ///
    /// [`Decision::in_quorum`]: crate::approval::Decision::in_quorum
    pub in_quorum: bool,
    /// With changed arguments.
    pub edited: bool,
}

impl Ballot {
    /// An empty one for this request.
    #[must_use]
    pub fn empty(terms: &Terms) -> Self {
        let (digest, nonce) = (Some(terms.digest.clone()), terms.nonce.clone());
        Self { digest, nonce, ..Self::default() }
    }

    /// This, if it is about this request, and not about an earlier one with the same id.
    ///
    /// A decider of version 0.1 writes no nonce. Its decision counts if it was made after the request;
    /// its votes on a request with a nonce do not, since nothing says when they were given.
    #[must_use]
    pub fn of(&self, terms: &Terms) -> Option<&Self> {
        let is_same = match (&self.nonce, &terms.nonce) {
            (None, Some(_)) => self.decided.as_ref().is_some_and(|it| it.at >= terms.asked_at),
            (nonce, wanted) => nonce == wanted,
        };
        Some(self).filter(|ballot| is_same && ballot.digest.as_ref() == Some(&terms.digest))
    }

    /// Forgets what was said to another request under the same id.
    fn about(&mut self, terms: &Terms) -> &mut Self {
        if self.of(terms).is_none() {
            *self = Self::empty(terms);
        }
        self
    }

    fn has(&self, vote: &Vote<'_>) -> bool {
        let decided = self.decided.as_ref();
        decided.is_some_and(|decided| decided.decision == vote.decision)
            || self.votes.iter().any(|(by, id)| by == vote.by && id == vote.decision)
    }
}

/// How a question stands at `now`. After the deadline it is expired, whether anybody noticed or not.
#[must_use]
pub fn standing(terms: &Terms, ballot: &Ballot, now: i64) -> Standing {
    if let Some(decided) = decided(terms, ballot) {
        return Standing::Decided(decided.choice);
    }
    if terms.withdrawn {
        return Standing::Decided(Choice::Withdraw);
    }
    let deadline = deadline(terms, ballot);
    if now > deadline { Standing::Expired(deadline) } else { Standing::Open(deadline) }
}

/// Until when a request can be decided.
#[must_use]
pub fn deadline(terms: &Terms, ballot: &Ballot) -> i64 {
    let extended = ballot.of(terms).and_then(|ballot| ballot.extended);
    extended.filter(|until| *until > terms.asked_at).unwrap_or(terms.deadline)
}

/// The decision that counts. There is none when the deadline has passed, or the asker has withdrawn
/// the question.
#[must_use]
pub fn decided<'b>(terms: &Terms, ballot: &'b Ballot) -> Option<&'b Decided> {
    ballot.of(terms).and_then(|ballot| ballot.decided.as_ref())
}

/// Since when a question stands as it does; the deadline of one that is open, or has expired. The
/// asker leaves no word of when he withdrew it.
#[must_use]
pub fn since(terms: &Terms, ballot: &Ballot, now: i64) -> i64 {
    match (standing(terms, ballot, now), decided(terms, ballot)) {
        (Standing::Open(deadline) | Standing::Expired(deadline), _) => deadline,
        (Standing::Decided(_), decided) => decided.map_or(now, |decided| decided.at),
    }
}

/// Whether a request stays as it is, with its deadline and what was said to it, when its task asks the
/// same again. `awaits`: the record of the task's suspension has the request. Once the task has ended, or
/// its record is lost, the record has none, so that a decision counts for one run of a task to its end.
/// A request that the asker withdrew is made anew, too.
#[must_use]
pub fn stays(terms: &Terms, ballot: &Ballot, digest: &Digest, awaits: bool, now: i64) -> bool {
    let is_withdrawn =
        || terms.withdrawn && standing(terms, ballot, now) == Standing::Decided(Choice::Withdraw);
    awaits && terms.digest == *digest && !is_withdrawn()
}

/// A decision arrives. The first one that is enough wins, and whoever is later is told so.
pub fn decide(terms: Option<&Terms>, ballot: &mut Ballot, vote: &Vote<'_>, now: i64) -> Answer {
    let Some(terms) = terms else { return Answer::Unknown };
    let standing = standing(terms, ballot, now);
    let ballot = ballot.about(terms);
    if ballot.has(vote) {
        return Answer::Replayed;
    }
    match (standing, &ballot.decided) {
        (Standing::Decided(Choice::Withdraw), _) => return Answer::Withdrawn,
        (Standing::Decided(choice), Some(Decided { by, at, .. })) => {
            return Answer::AlreadyDecided { by: by.clone(), at: *at, choice };
        }
        (Standing::Decided(_), None) => return Answer::Withdrawn,
        (Standing::Expired(at), _) => return Answer::Expired { at },
        (Standing::Open(_), _) => {}
    }
    let is_of_another = vote.nonce.is_some_and(|nonce| terms.nonce.as_deref() != Some(nonce));
    if *vote.digest != terms.digest || is_of_another {
        return Answer::DigestMismatch;
    }
    if !may(terms, vote) {
        return Answer::NotAllowed;
    }
    if vote.choice == Choice::Approve {
        if !ballot.votes.iter().any(|(by, _)| is_same_voter(by, vote.by)) {
            ballot.votes.push((vote.by.to_owned(), vote.decision.to_owned()));
        }
        let votes = u32::try_from(ballot.votes.len()).unwrap_or(u32::MAX);
        if votes < terms.quorum {
            return Answer::Counted { votes, quorum: terms.quorum };
        }
    }
    ballot.decided = Some(Decided {
        decision: vote.decision.to_owned(),
        choice: vote.choice,
        by: vote.by.to_owned(),
        at: now,
    });
    Answer::Applied
}

/// Whether this person may say this. Who asks may take the question back.
fn may(terms: &Terms, vote: &Vote<'_>) -> bool {
    let is_editable = terms.editable && terms.quorum == 1;
    match vote.choice {
        Choice::Withdraw if terms.requester.as_deref() == Some(vote.by) => true,
        Choice::Approve => {
            let counts = terms.quorum <= 1 || vote.in_quorum || !is_policy(vote.by);
            counts && may_approve(terms, vote.by) && (!vote.edited || is_editable)
        }
        _ => is_named(terms, vote.by) && (!vote.edited || is_editable),
    }
}

/// All policies have one vote, so that one that is renamed does not vote again.
fn is_same_voter(one: &str, other: &str) -> bool {
    one == other || (is_policy(one) && is_policy(other))
}

fn is_named(terms: &Terms, person: &str) -> bool {
    terms.approvers.is_empty() || terms.approvers.iter().any(|by| by == person)
}

/// Whether this person is one of the request's approvers: who wants it is not, unless it says so.
fn may_approve(terms: &Terms, person: &str) -> bool {
    let is_own = terms.requester.as_deref() == Some(person) && !terms.self_approval;
    is_named(terms, person) && !is_own
}

/// More time for a request.
#[derive(Clone, Copy, Debug)]
pub struct Extension<'a> {
    /// Who gives it.
    pub by: &'a str,
    /// This person is one of the operators of the configuration.
    pub is_operator: bool,
    /// The new deadline.
    pub until: i64,
}

/// Somebody gives a request more time: one of its approvers, or an operator. Its deadline is never brought
/// forward, since a deadline may approve.
pub fn extend(
    terms: Option<&Terms>,
    ballot: &mut Ballot,
    extension: Extension<'_>,
    now: i64,
) -> Answer {
    let Some(terms) = terms else { return Answer::Unknown };
    let standing = standing(terms, ballot, now);
    let ballot = ballot.about(terms);
    match (standing, &ballot.decided) {
        (Standing::Open(deadline), _) => {
            let Extension { by, is_operator, until } = extension;
            if !is_operator && !may_approve(terms, by) {
                return Answer::NotAllowed;
            }
            if until < deadline {
                return Answer::Earlier { deadline };
            }
            ballot.extended = Some(until);
            Answer::Applied
        }
        (Standing::Expired(at), _) => Answer::Expired { at },
        (Standing::Decided(Choice::Withdraw), _) | (Standing::Decided(_), None) => {
            Answer::Withdrawn
        }
        (Standing::Decided(choice), Some(Decided { by, at, .. })) => {
            Answer::AlreadyDecided { by: by.clone(), at: *at, choice }
        }
    }
}

#[cfg(test)]
mod tests;
