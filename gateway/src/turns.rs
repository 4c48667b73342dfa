//! Turns among many who wait: a line for each key, so that who waits with five hundred others delays nobody of another key by
//! more than one.

use std::collections::{BTreeMap, VecDeque};

#[derive(Debug)]
pub(crate) struct Turns<K, T> {
    /// None of them is empty.
    lines: BTreeMap<K, VecDeque<T>>,
    /// Each key that has a line, once.
    order: VecDeque<K>,
}

impl<K: Clone + Ord, T> Turns<K, T> {
    pub(crate) const fn new() -> Self {
        Self { lines: BTreeMap::new(), order: VecDeque::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// To the end of its key's line.
    pub(crate) fn push(&mut self, key: &K, waiting: T) {
        match self.lines.get_mut(key) {
            Some(line) => line.push_back(waiting),
            None => {
                self.lines.insert(key.clone(), VecDeque::from([waiting]));
                self.order.push_back(key.clone());
            }
        }
    }

    /// How many of that key wait.
    pub(crate) fn waiting(&self, key: &K) -> usize {
        self.lines.get(key).map_or(0, VecDeque::len)
    }

    /// Keys that have a line.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Whose turn it is, of those who have not gone.
    pub(crate) fn peek(&mut self, is_gone: impl Fn(&T) -> bool) -> Option<&K> {
        while let Some(line) = self.lines.get_mut(self.order.front()?) {
            while line.pop_front_if(|first| is_gone(first)).is_some() {}
            if !line.is_empty() {
                break;
            }
            self.lines.remove(&self.order.pop_front()?);
        }
        self.order.front()
    }

    /// Whose turn it is lets the others go first.
    pub(crate) fn pass(&mut self) {
        if !self.order.is_empty() {
            self.order.rotate_left(1);
        }
    }

    /// The first of the line whose turn it is; the rest of it has one when all others had theirs.
    pub(crate) fn next(&mut self) -> Option<T> {
        let key = self.order.pop_front()?;
        let line = self.lines.get_mut(&key)?;
        let first = line.pop_front();
        if line.is_empty() {
            self.lines.remove(&key);
        } else {
            self.order.push_back(key);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lets_others_go_first_loses_nobody() {
        let mut turns = Turns::new();
        let all_stay = |_: &i32| false;
        turns.pass();
        turns.push(&"resting", 1);
        turns.push(&"other", 2);
        assert_eq!(turns.peek(all_stay), Some(&"resting"));
        turns.pass();
        assert_eq!((turns.next(), turns.len()), (Some(2), 1));
        turns.pass();
        assert_eq!(turns.peek(all_stay), Some(&"resting"));
        assert_eq!(turns.next(), Some(1));
        assert_eq!(turns.peek(all_stay), None);
    }

    #[test]
    fn who_has_gone_has_no_turn() {
        let mut turns = Turns::new();
        for number in 0..4 {
            turns.push(&"leaving", number);
        }
        turns.push(&"staying", 10);
        assert_eq!(turns.peek(|number| *number != 3 && *number < 10), Some(&"leaving"));
        assert_eq!((turns.next(), turns.next(), turns.next()), (Some(3), Some(10), None));
    }

    #[test]
    fn keys_are_served_in_turn_and_each_in_order() {
        let mut turns = Turns::new();
        for number in 0..3 {
            turns.push(&"many", number);
        }
        assert_eq!(turns.next(), Some(0));
        turns.push(&"one", 10);
        turns.push(&"two", 20);
        let rest: Vec<_> = std::iter::from_fn(|| turns.next()).collect();
        assert_eq!(rest, [1, 10, 20, 2]);
        assert!(turns.is_empty() && turns.lines.is_empty());
    }
}
