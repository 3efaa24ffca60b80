//! What repairs tell of what is missing: a system of equations for each segment of columns, solved; and the
//! check by which a repair's window is known to be put together rightly. Pure.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;

use super::{Repair, Ring, cells, factor, field, place};

/// Cells that one solution brings back at most. With more, the stream's own retransmission is waited for.
const UNKNOWN_MAX: usize = 12;

/// What came of trying.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Solution {
    /// Whole gaps, filled, each of whose bytes lies in a window that passed its repair's check.
    pub pieces: Vec<(u64, Bytes)>,
    /// Which of the repairs do not fit together with what the stream brought: nothing is taken of them.
    pub refuted: Vec<usize>,
}

/// Solves what can be solved of `gaps`, which are in order and all that is missing of the repairs' windows.
/// The repairs have cells of the same size, and `ring` has all else of their windows.
pub(super) fn solve(ring: &Ring, repairs: &[&Repair], gaps: &[Range<u64>]) -> Solution {
    let Some(cell) = repairs.first().map(|repair| repair.cell) else { return Solution::default() };
    let mut system = System {
        ring,
        repairs,
        cell,
        touched: touched(gaps, cell),
        rests: vec![None; repairs.len()],
        used: vec![false; repairs.len()],
        fills: gaps.iter().cloned().map(Fill::new).collect(),
    };
    for segment in segments(repairs, gaps, cell) {
        system.solve_segment(&segment);
    }
    system.checked()
}

/// A system of equations: each repair is one, for each column of the cells.
struct System<'a> {
    ring: &'a Ring,
    repairs: &'a [&'a Repair],
    cell: u64,
    /// Cells of which something is missing, in order, and which columns.
    touched: Vec<(u64, Vec<Range<u64>>)>,
    /// What each repair has beyond what is known: sums of the unknown. Made when they are needed.
    rests: Vec<Option<Vec<u8>>>,
    /// Which repairs took part in what was found.
    used: Vec<bool>,
    fills: Vec<Fill>,
}

/// A gap that is being filled.
struct Fill {
    gap: Range<u64>,
    bytes: Vec<u8>,
    filled: usize,
}

/// One equation, of a segment of columns.
struct Equation {
    /// The factors of the unknown cells.
    factors: Vec<u8>,
    /// Of which repairs it is the sum, and how much of each.
    parts: Vec<u8>,
}

impl System<'_> {
    /// Brings back what can be of a segment of columns. Within it each cell is missing or known as a whole,
    /// and lies in a window or does not.
    fn solve_segment(&mut self, segment: &Range<u64>) {
        let column = segment.start;
        let missing: Vec<u64> = self
            .touched
            .iter()
            .filter(|(_, columns)| columns.iter().any(|columns| columns.contains(&column)))
            .map(|(index, _)| *index)
            .collect();
        let covers = |repair: &Repair, index: u64| repair.window.contains(&(index * self.cell + column));
        let holds = |repair: &Repair| {
            let columns = repair.columns();
            columns.start <= column && segment.end <= columns.end
        };
        let mut equations: Vec<(usize, usize)> = self
            .repairs
            .iter()
            .enumerate()
            .filter(|(_, repair)| holds(repair))
            .map(|(number, repair)| (number, missing.iter().filter(|index| covers(repair, **index)).count()))
            .collect();
        // One that lacks more than all of them could bring says nothing.
        let most = equations.len().min(UNKNOWN_MAX);
        equations.retain(|(_, unknown)| (1..=most).contains(unknown));
        let among = |index: &u64| equations.iter().any(|(number, _)| covers(self.repairs[*number], *index));
        let unknown: Vec<u64> = missing.into_iter().filter(among).collect();
        if equations.is_empty() || unknown.len() > UNKNOWN_MAX {
            return;
        }
        let mut rows: Vec<Equation> = Vec::with_capacity(equations.len());
        for (place, (number, _)) in equations.iter().enumerate() {
            let repair = self.repairs[*number];
            let of = |index: &u64| if covers(repair, *index) { factor(repair.key, *index) } else { 0 };
            let mut parts = vec![0; equations.len()];
            parts[place] = 1;
            rows.push(Equation { factors: unknown.iter().map(of).collect(), parts });
        }
        eliminate(&mut rows, unknown.len());
        for row in &rows {
            let mut others = row.factors.iter().enumerate().filter(|(_, factor)| **factor != 0);
            let (Some((at, _)), None) = (others.next(), others.next()) else { continue };
            let mut bytes = vec![0; size(segment.end - segment.start)];
            for (part, (number, _)) in row.parts.iter().zip(&equations).filter(|(part, _)| **part != 0) {
                self.used[*number] = true;
                let rest = self.rest(*number);
                field::add_scaled(&mut bytes, &rest[size(column)..size(segment.end)], *part);
            }
            self.fill(unknown[at] * self.cell + column, &bytes);
        }
    }

    /// What a repair has beyond what is known, by columns of a whole cell.
    fn rest(&mut self, number: usize) -> &[u8] {
        let (repair, cell) = (self.repairs[number], self.cell);
        let made = self.rests[number].take().unwrap_or_else(|| {
            let mut sum = vec![0; size(cell)];
            let columns = repair.columns();
            sum[size(columns.start)..size(columns.end)].copy_from_slice(&repair.bytes);
            for index in cells(&repair.window, cell) {
                let found = self.touched.binary_search_by_key(&index, |(index, _)| *index);
                let missing = found.map_or(&[][..], |at| self.touched[at].1.as_slice());
                let mut begin = 0;
                for end in missing.iter().map(|columns| columns.start).chain([cell]) {
                    let held = columns.start.max(begin)..columns.end.min(end);
                    let held = held.start..held.end.max(held.start);
                    let known = place(index, cell, &held, &repair.window);
                    if !known.is_empty() {
                        let column = size(known.start - index * cell);
                        self.ring.add_to(&mut sum[column..], known, factor(repair.key, index));
                    }
                    begin = missing.iter().find(|columns| columns.start == end).map_or(cell, |c| c.end);
                }
            }
            sum
        });
        self.rests[number].insert(made)
    }

    /// A segment of a cell is known: its bytes go into the gap that they were missing in.
    fn fill(&mut self, offset: u64, bytes: &[u8]) {
        if let Some(fill) = self.fills.iter_mut().find(|fill| fill.gap.contains(&offset)) {
            let at = size(offset - fill.gap.start);
            fill.bytes[at..at + bytes.len()].copy_from_slice(bytes);
            fill.filled += bytes.len();
        }
    }

    /// The gaps that are whole, as far as windows that pass their checks have them. One window that does not
    /// condemns all repairs that took part, as it is not known which is wrong.
    fn checked(self) -> Solution {
        let touches =
            |window: &Range<u64>, gap: &Range<u64>| window.start < gap.end && gap.start < window.end;
        let mut passed: Vec<&Range<u64>> = Vec::new();
        for (repair, _) in self.repairs.iter().zip(&self.used).filter(|(_, used)| **used) {
            let within: Vec<&Fill> =
                self.fills.iter().filter(|fill| touches(&repair.window, &fill.gap)).collect();
            if within.iter().all(|fill| fill.is_whole()) {
                if self.check(&repair.window, &within) != repair.check {
                    let refuted = (0..self.repairs.len()).filter(|number| self.used[*number]).collect();
                    return Solution { pieces: Vec::new(), refuted };
                }
                passed.push(&repair.window);
            }
        }
        passed.sort_unstable_by_key(|window| window.start);
        let is_checked = |gap: &Range<u64>| {
            let reach =
                |at: u64, window: &&Range<u64>| if window.start <= at { at.max(window.end) } else { at };
            passed.iter().fold(gap.start, reach) >= gap.end
        };
        let whole = self.fills.into_iter().filter(|fill| fill.is_whole() && is_checked(&fill.gap));
        let pieces = whole.map(|fill| (fill.gap.start, Bytes::from(fill.bytes))).collect();
        Solution { pieces, refuted: Vec::new() }
    }

    /// The check of a window whose gaps are all filled.
    fn check(&self, window: &Range<u64>, within: &[&Fill]) -> u32 {
        let (mut check, mut at) = (0, window.start);
        for Fill { gap, bytes, .. } in within {
            check = self.ring.check(check, at..gap.start.max(at));
            let part = gap.start.max(window.start)..gap.end.min(window.end);
            let part = size(part.start - gap.start)..size(part.end - gap.start);
            check = crc32c::crc32c_append(check, &bytes[part]);
            at = gap.end.min(window.end);
        }
        self.ring.check(check, at..window.end)
    }
}

impl Fill {
    fn new(gap: Range<u64>) -> Fill {
        Fill { bytes: vec![0; size(gap.end - gap.start)], filled: 0, gap }
    }

    fn is_whole(&self) -> bool {
        self.filled == self.bytes.len()
    }
}

/// The cells that the gaps touch, in order, with the columns that are missing of each.
fn touched(gaps: &[Range<u64>], cell: u64) -> Vec<(u64, Vec<Range<u64>>)> {
    let mut touched: Vec<(u64, Vec<Range<u64>>)> = Vec::new();
    for gap in gaps {
        for index in cells(gap, cell) {
            let offset = index * cell;
            let columns = gap.start.max(offset) - offset..gap.end.min(offset + cell) - offset;
            match touched.last_mut() {
                Some((last, all)) if *last == index => all.push(columns),
                _ => touched.push((index, vec![columns])),
            }
        }
    }
    touched
}

/// The columns cut so that within each segment nothing changes.
fn segments(repairs: &[&Repair], gaps: &[Range<u64>], cell: u64) -> Vec<Range<u64>> {
    let of_gaps = gaps.iter().flat_map(|gap| [gap.start % cell, gap.end % cell]);
    let of_repairs = repairs.iter().flat_map(|repair| {
        let (columns, window) = (repair.columns(), &repair.window);
        [columns.start, columns.end, window.start % cell, window.end % cell]
    });
    let bounds: BTreeSet<u64> = [0, cell].into_iter().chain(of_gaps).chain(of_repairs).collect();
    let bounds: Vec<u64> = bounds.into_iter().collect();
    bounds.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// Brings the equations into the form in which each that determines an unknown has it alone, with factor one.
/// The order of the equations stays, so that `parts` go on meaning them.
fn eliminate(equations: &mut [Equation], unknown: usize) {
    let mut used = vec![false; equations.len()];
    for column in 0..unknown {
        let pivot = (0..equations.len()).find(|row| !used[*row] && equations[*row].factors[column] != 0);
        let Some(pivot) = pivot else { continue };
        used[pivot] = true;
        let inverse = field::inverse(equations[pivot].factors[column]);
        for numbers in [&mut equations[pivot].factors, &mut equations[pivot].parts] {
            numbers.iter_mut().for_each(|number| *number = field::multiply(*number, inverse));
        }
        let (factors, parts) = (equations[pivot].factors.clone(), equations[pivot].parts.clone());
        for (row, equation) in equations.iter_mut().enumerate() {
            let times = equation.factors[column];
            if row != pivot && times != 0 {
                add(&mut equation.factors, &factors, times);
                add(&mut equation.parts, &parts, times);
            }
        }
    }
}

/// As [`field::add_scaled`], of a few.
fn add(sum: &mut [u8], numbers: &[u8], times: u8) {
    for (sum, number) in sum.iter_mut().zip(numbers) {
        *sum ^= field::multiply(*number, times);
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
