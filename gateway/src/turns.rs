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
