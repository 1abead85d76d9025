//! Draws the next event of a sequence.

use countersign::approval::DecisionKind;

use crate::model::{HOUR, Kind, MINUTE};
use crate::world::World;

const PEOPLE: [&str; 8] = ["ana", "ana", "bob", "bob", "eve", "rita", "policy:a", "policy:b"];
/// The minutes by which the clock moves: multiples of 20, as all other times here, plus `MORE` milliseconds,
/// so that no event is at a deadline.
const JUMPS: [i64; 9] = [20, 20, 40, 120, 120, 600, 30 * 60, 9 * 24 * 60, 31 * 24 * 60];
const MORE: i64 = 20_000;

impl World<'_> {
    pub(crate) async fn play(&mut self, steps: usize) {
        self.step_of("delivers the task", 0).await;
        for _ in 1..steps {
            let n = self.draw.below(100);
            self.step_of("", n).await;
        }
        self.assert_resumed().await;
    }

    async fn step_of(&mut self, what: &str, n: usize) {
        if !what.is_empty() {
            self.trace.push(what.to_owned());
        }
        self.step(n).await;
        self.check().await;
    }

    fn log(&mut self, what: String) {
        self.trace.push(what);
    }

    async fn step(&mut self, n: usize) {
        match n {
            0..4 => {
                self.log("the task's message is published again".into());
                self.deliver((Kind::Original, 0)).await;
            }
            // If no run could continue or crash, a message is delivered.
            4..59 if n < 24 || self.runs.is_empty() => {
                let n = self.draw.below(self.messages.len());
                // In most cases the newest message.
                let n = if self.draw.one_in(3) { n } else { self.messages.len() - 1 };
                let message = self.messages[n];
                self.log(format!("{message:?} is delivered"));
                self.deliver(message).await;
            }
            24..56 => {
                let n = self.draw.below(self.runs.len());
                self.log(format!("{} goes on", self.runs[n].holder));
                self.go_on(n).await;
            }
            56..58 => {
                let n = self.draw.below(self.runs.len());
                let run = self.runs.swap_remove(n);
                self.log(format!("{} dies", run.holder));
            }
            58..59 => {
                let n = self.draw.below(self.runs.len());
                self.log(format!("{} gives its claim back", self.runs[n].holder));
                self.release(n).await;
            }
            59..81 => self.decide_as_anyone().await,
            81..84 => {
                let (slot, by) = (self.draw.below(3), self.draw.of(&PEOPLE));
                let is_operator = self.draw.one_in(3);
                let time = self.draw.of(&[20 * MINUTE, 9 * HOUR, 4 * 24 * HOUR]);
                self.log(format!("{by} extends {slot} by {time}, operator: {is_operator}"));
                self.extend(slot, by, is_operator, time).await;
            }
            84..88 => {
                self.log("a sweep".into());
                self.sweep().await;
            }
            88..90 => {
                self.log("a service requests an approval".into());
                self.request_outside().await;
            }
            90..92 => {
                self.log("the dead letter is replayed".into());
                self.reopen().await;
                self.messages.push((Kind::Original, 0));
            }
            _ => {
                let minutes = self.draw.of(&JUMPS);
                self.log(format!("{minutes} minutes pass"));
                self.pass(minutes * MINUTE + MORE).await;
            }
        }
    }

    async fn decide_as_anyone(&mut self) {
        if self.draw.one_in(4) && !self.sent.is_empty() {
            let n = self.draw.below(self.sent.len());
            let sent = self.sent[n].clone();
            self.log(format!("an old decision is sent again: {:?}", sent.decision));
            self.decide(sent).await;
            return;
        }
        let slot = self.draw.of(&[0, 0, 0, 1, 2]);
        let by = self.draw.of(&PEOPLE);
        let choice = self.draw.of(&[
            DecisionKind::Approve,
            DecisionKind::Approve,
            DecisionKind::Approve,
            DecisionKind::Approve,
            DecisionKind::Approve,
            DecisionKind::Reject,
            DecisionKind::Withdraw,
        ]);
        let sent = self.new_decision(slot, by, choice);
        self.log(format!("{:?}", sent.decision));
        self.decide(sent).await;
    }
}
