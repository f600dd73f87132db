//! Memory that tasks hand on to each other: to touch new memory costs as much as much of the work that is done in it, and
//! tasks are many, so that no core waits for the last of them.

use std::sync::{Mutex, PoisonError};

/// As many `T` as tasks ran at once.
#[derive(Default)]
pub struct Spare<T>(Mutex<Vec<T>>);

impl<T: Default> Spare<T> {
    /// Runs `task` with one that no other task has, which holds what the last one left in it.
    pub fn lend<R>(&self, task: impl FnOnce(&mut T) -> R) -> R {
        let all = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut one = all().pop().unwrap_or_default();
        let result = task(&mut one);
        all().push(one);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_each_and_as_few_as_can_be() {
        let spare = Spare::<Vec<u8>>::default();
        spare.lend(|a| {
            a.push(1);
            spare.lend(|b| assert!(b.is_empty()));
        });
        spare.lend(|a| spare.lend(|b| assert_eq!(a.len() + b.len(), 1)));
        assert_eq!(spare.0.lock().unwrap().len(), 2);
    }
}
