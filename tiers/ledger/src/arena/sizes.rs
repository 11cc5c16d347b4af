//! Sizes in steps of an eighth: the classes of blocks, and the bins of free runs, are the same steps.
//!
//! Step `n` starts at `n` below 8, then eight steps to each power of two: 8, 9, ... 15, 16, 18, ... 30, 32, 36, ... So a
//! size that is rounded up to a step grows by less than an eighth, and a run in the bin of a step has room for it.

/// Steps to a power of two.
const STEPS: u32 = 8;

/// Steps that sizes up to 2^14 (the pages of the largest slab) fall into, and one more.
pub(super) const STEP_COUNT: usize = step(1 << 14) as usize + 1;

/// The last step that starts at or below `size`.
pub(super) const fn step(size: u32) -> u32 {
    if size < STEPS {
        return size;
    }
    let log = size.ilog2();
    (log - 2) * STEPS + ((size >> (log - 3)) & (STEPS - 1))
}

/// Where a step starts.
pub(super) const fn start(step: u32) -> u32 {
    if step < STEPS {
        return step;
    }
    (STEPS + step % STEPS) << (step / STEPS - 1)
}

/// The size rounded up to where a step starts.
pub(super) const fn round_up(size: u32) -> u32 {
    let below = step(size);
    if start(below) == size { size } else { start(below + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_any_size_when_rounded_up_then_it_grows_by_less_than_an_eighth_and_starts_a_step() {
        for size in 1..=1 << 14 {
            let rounded = round_up(size);
            assert!(rounded >= size && (rounded - size) * STEPS < size.max(1), "{size} -> {rounded}");
            assert_eq!((start(step(rounded)), round_up(rounded)), (rounded, rounded));
            assert!(start(step(size)) <= size && size < start(step(size) + 1), "{size}");
        }
        assert_eq!(STEP_COUNT, 97);
    }
}
