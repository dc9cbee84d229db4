//! Is it one message that its destination does not take, or all of them? What only looks like a matter of the whole
//! subscription must not stop it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use laneway_core::MessageId;

/// Different messages in a row, none of them taken, that stand for all.
const ALL: usize = 16;

/// Messages that were refused lately, by what the refusals speak of.
#[derive(Default)]
pub(crate) struct Refusals {
    /// Since the last success: who sends them may not.
    forbidden: Mutex<VecDeque<MessageId>>,
    /// The newest ones: the configuration is wrong.
    misconfigured: Mutex<VecDeque<MessageId>>,
    /// Whether there is something in `forbidden`.
    has_forbidden: AtomicBool,
    /// Whether a message succeeded since the configuration was last said to be wrong.
    has_succeeded: AtomicBool,
}

fn note(messages: &mut VecDeque<MessageId>, message: &MessageId) {
    if !messages.contains(message) {
        messages.truncate(ALL - 1);
        messages.push_front(message.clone());
    }
}

impl Refusals {
    /// A message was taken, or refused for what it is itself.
    pub fn answered(&self) {
        // Looked at first: nearly always there is nothing to do.
        if !self.has_succeeded.load(Ordering::Relaxed) {
            self.has_succeeded.store(true, Ordering::Relaxed);
        }
        if self.has_forbidden.load(Ordering::Relaxed) && self.has_forbidden.swap(false, Ordering::Relaxed) {
            self.forbidden.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// A message was refused because of who sends it. Answers whether so many others were, one after the other, that it is
    /// no matter of this message.
    pub fn forbid(&self, message: &MessageId) -> bool {
        let mut forbidden = self.forbidden.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_forbidden.store(true, Ordering::Relaxed);
        note(&mut forbidden, message);
        forbidden.len() >= ALL
    }

    /// A message was refused because of the configuration. Answers whether that holds for all, as far as is known: not if
    /// it was refused before and others have been taken since.
    pub fn misconfigure(&self, message: &MessageId) -> bool {
        let mut misconfigured = self.misconfigured.lock().unwrap_or_else(PoisonError::into_inner);
        let is_its_own = misconfigured.contains(message) && self.has_succeeded.load(Ordering::Relaxed);
        if !is_its_own {
            self.has_succeeded.store(false, Ordering::Relaxed);
            note(&mut misconfigured, message);
        }
        !is_its_own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> MessageId {
        MessageId::parse(&format!("m-{number}")).unwrap()
    }

    #[test]
    fn one_forbidden_message_is_not_all_however_often_it_is_tried() {
        let refusals = Refusals::default();
        assert!((0..100).all(|_| !refusals.forbid(&id(1))));
    }

    #[test]
    fn different_ones_in_a_row_are_all_until_one_is_taken() {
        let refusals = Refusals::default();
        assert!((1..ALL).all(|number| !refusals.forbid(&id(number))));
        assert!(refusals.forbid(&id(ALL)) && refusals.forbid(&id(1)) && refusals.forbid(&id(99)));
        refusals.answered();
        assert!(!refusals.forbid(&id(1)));
    }

    #[test]
    fn a_message_that_is_refused_again_while_others_are_taken_stops_nobody() {
        let refusals = Refusals::default();
        refusals.answered();
        assert!(refusals.misconfigure(&id(1)), "nothing is known of it yet");
        assert!(refusals.misconfigure(&id(1)), "nothing was taken since");
        refusals.answered();
        assert!(!refusals.misconfigure(&id(1)));
        assert!(!refusals.misconfigure(&id(1)));
        assert!(refusals.misconfigure(&id(2)), "another one may mean that all are");
        assert!(refusals.misconfigure(&id(1)));
    }
}
