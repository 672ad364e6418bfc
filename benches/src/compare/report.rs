//! What was measured, beside what was wanted: rows, their verdicts, the tables and the JSON. A goal that
//! speaks of a CPU with SHA-NI or AVX-512 is judged on such a CPU alone; its ratio is shown on any.

use std::fmt::{self, Write};

use serde_json::{Value, json};

use super::clock::Cost;
use super::cpu::{Cpu, Needs};

/// One path, measured on both sides.
#[derive(Debug, Clone)]
pub struct Row {
    /// What is done; names exactly what each side does where that is not the same by itself.
    pub path: String,
    /// What ours stands beside: `SRI`, or a limit by its name.
    pub against: &'static str,
    /// What the figures count.
    pub unit: Unit,
    /// Ours, for one operation.
    pub ours: Cost,
    /// The other's.
    pub theirs: Cost,
    /// What is wanted.
    pub goal: Goal,
    /// On which CPUs it is wanted; `None` on any.
    pub needs: Option<Needs>,
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// CPU time.
    Nanoseconds,
    /// CPU time, too.
    Microseconds,
    /// Time on the wall.
    Milliseconds,
    /// How many in a second: more is better.
    PerSecond,
    /// Memory that stays in use.
    Kibibytes,
    /// Calls to the allocator.
    Allocations,
    /// Bytes that stay in use.
    Bytes,
}

/// What is wanted of a row's medians.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Ours so many times as fast as theirs.
    Faster(f64),
    /// At least this part of the limit's speed.
    OfLimit(f64),
    /// At most so many times the other's time.
    Within(f64),
    /// A figure of ours alone.
    AtMost(f64),
    /// Nothing was set; shown to be seen.
    Shown,
}

/// Whether it was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Met,
    /// No.
    Missed,
    /// Not judged: the goal is one for CPUs that have this.
    NotHere(Needs),
    /// No goal was set.
    Shown,
}

impl Row {
    /// A row of times.
    #[must_use]
    pub fn time(path: impl Into<String>, ours: Cost, theirs: Cost, goal: Goal) -> Self {
        let (path, unit) = (path.into(), Unit::Nanoseconds);
        Self { path, against: "SRI", unit, ours, theirs, goal, needs: None }
    }

    /// A row of things that were counted, for one operation.
    #[must_use]
    pub fn counted(path: &str, unit: Unit, ours: f64, theirs: f64, goal: Goal) -> Self {
        let (ours, theirs) = (Cost::exact(ours), Cost::exact(theirs));
        Self { unit, ..Self::time(path, ours, theirs, goal) }
    }

    /// The same beside something that is not SRI.
    #[must_use]
    pub fn against(self, against: &'static str) -> Self {
        Self { against, ..self }
    }

    /// The same, with a goal that is judged on CPUs with these instructions alone.
    #[must_use]
    pub fn on_cpus_with(self, needs: Needs) -> Self {
        Self { needs: Some(needs), ..self }
    }

    /// The number that the goal speaks of.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let (ours, theirs) = (self.ours.median, self.theirs.median);
        match self.goal {
            _ if self.unit == Unit::PerSecond => ours / theirs,
            Goal::Within(_) => ours / theirs,
            Goal::Faster(_) | Goal::OfLimit(_) | Goal::AtMost(_) | Goal::Shown => theirs / ours,
        }
    }

    /// Judges the medians.
    #[must_use]
    pub fn verdict(&self, cpu: Cpu) -> Verdict {
        let met = match self.goal {
            Goal::Shown => return Verdict::Shown,
            Goal::Faster(least) | Goal::OfLimit(least) => self.ratio() >= least,
            Goal::Within(most) => self.ratio() <= most,
            Goal::AtMost(most) => self.ours.median <= most,
        };
        match self.needs.filter(|needs| !cpu.has(*needs)) {
            Some(lacking) => Verdict::NotHere(lacking),
            None if met => Verdict::Met,
            None => Verdict::Missed,
        }
    }

    fn cells(&self, cpu: Cpu) -> [String; 6] {
        let percent = matches!(self.goal, Goal::OfLimit(_));
        let ratio = match self.ratio() {
            ratio if !ratio.is_finite() => "-".to_owned(),
            ratio if percent => format!("{:.0} %", 100.0 * ratio),
            ratio => format!("{ratio:.2}x"),
        };
        let (ours, theirs) = (figure(self.ours), figure(self.theirs));
        // The head of the table says that figures are nanoseconds.
        let unit = match (self.unit == Unit::Nanoseconds, self.unit.as_str()) {
            (true, _) => String::new(),
            (false, unit) => format!(", {unit}"),
        };
        let path = format!("{}{unit}", self.path);
        [path, ours, theirs, ratio, self.goal.to_string(), self.verdict(cpu).to_string()]
    }

    fn to_json(&self, cpu: Cpu) -> Value {
        json!({
            "path": self.path,
            "against": self.against,
            "unit": self.unit.as_str(),
            "ours": { "min": self.ours.min, "median": self.ours.median },
            "theirs": { "min": self.theirs.min, "median": self.theirs.median },
            "ratio": self.ratio(),
            "goal": self.goal.to_string(),
            "verdict": self.verdict(cpu).to_string(),
        })
    }
}

impl Unit {
    fn as_str(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::PerSecond => "per second",
            Self::Kibibytes => "KiB",
            Self::Allocations => "allocations",
            Self::Bytes => "bytes",
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Faster(least) => write!(f, ">= {least}x"),
            Self::OfLimit(least) => write!(f, ">= {:.0} %", 100.0 * least),
            Self::Within(most) => write!(f, "<= {most}x"),
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::Shown => f.write_str("-"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Met => f.write_str("met"),
            Self::Missed => f.write_str("MISSED"),
            Self::NotHere(lacking) => write!(f, "no {lacking} here"),
            Self::Shown => f.write_str("-"),
        }
    }
}

/// Minimum and median, or one number if they are the same.
fn figure(cost: Cost) -> String {
    let digits = |figure: f64| match figure {
        figure if figure >= 100.0 => format!("{figure:.0}"),
        figure if figure >= 10.0 => format!("{figure:.1}"),
        0.0 => "0".to_owned(),
        figure => format!("{figure:.2}"),
    };
    match cost.min == cost.median {
        true => digits(cost.median),
        false => format!("{} / {}", digits(cost.min), digits(cost.median)),
    }
}

/// All rows as tables, one for each thing that ours stand beside.
#[must_use]
pub fn tables(rows: &[Row], cpu: Cpu) -> String {
    let mut text = String::new();
    let mut sides: Vec<&str> = Vec::new();
    for row in rows {
        if !sides.contains(&row.against) {
            sides.push(row.against);
        }
    }
    for side in sides {
        let timed = |row: &&Row| row.against == side && row.unit == Unit::Nanoseconds;
        let ns = if rows.iter().any(|row| timed(&row)) { " ns" } else { "" };
        let (ours, theirs) = (format!("ours{ns}"), format!("{side}{ns}"));
        let head = ["path", &ours, &theirs, "ratio", "goal", "verdict"];
        let mut lines = vec![head.map(str::to_owned)];
        lines.extend(rows.iter().filter(|row| row.against == side).map(|row| row.cells(cpu)));
        let width = |column: usize| {
            lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or(0)
        };
        let widths: [usize; 6] = std::array::from_fn(width);
        for (at, cells) in lines.iter().enumerate() {
            let padded: Vec<String> =
                cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            let _ = writeln!(text, "| {} |", padded.join(" | "));
            if at == 0 {
                let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
                let _ = writeln!(text, "| {} |", rule.join(" | "));
            }
        }
        text.push('\n');
    }
    text
}

/// All rows as one object.
#[must_use]
pub fn to_json(rows: &[Row], cpu: Cpu, rounds: usize) -> Value {
    let rows: Vec<Value> = rows.iter().map(|row| row.to_json(cpu)).collect();
    json!({ "cpu": cpu.to_string(), "sha": cpu.sha, "avx512": cpu.avx512, "rounds": rounds, "rows": rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH: Cpu = Cpu { sha: true, avx512: true };
    const WITHOUT: Cpu = Cpu { sha: false, avx512: true };

    fn verdict(ours: f64, theirs: f64, goal: Goal) -> Verdict {
        Row::time("path", Cost::exact(ours), Cost::exact(theirs), goal).verdict(WITH)
    }

    #[test]
    fn a_goal_is_met_at_its_number_and_missed_just_beside_it() {
        assert_eq!(verdict(100.0, 200.0, Goal::Faster(2.0)), Verdict::Met);
        assert_eq!(verdict(100.1, 200.0, Goal::Faster(2.0)), Verdict::Missed);
        assert_eq!(verdict(100.0, 80.0, Goal::OfLimit(0.8)), Verdict::Met);
        assert_eq!(verdict(100.1, 80.0, Goal::OfLimit(0.8)), Verdict::Missed);
        assert_eq!(verdict(150.0, 100.0, Goal::Within(1.5)), Verdict::Met);
        assert_eq!(verdict(150.1, 100.0, Goal::Within(1.5)), Verdict::Missed);
        assert_eq!(verdict(17.0, 0.0, Goal::AtMost(17.0)), Verdict::Met);
        assert_eq!(verdict(17.1, 0.0, Goal::AtMost(17.0)), Verdict::Missed);
    }

    #[test]
    fn a_figure_that_is_no_number_meets_no_goal() {
        for goal in [Goal::Faster(2.0), Goal::OfLimit(0.8), Goal::Within(1.5), Goal::AtMost(1.0)] {
            assert_eq!(verdict(f64::NAN, 1.0, goal), Verdict::Missed);
        }
    }

    #[test]
    fn a_goal_for_sha_cpus_is_judged_on_those_and_shown_on_others() {
        let row = Row::time("share", Cost::exact(9.0), Cost::exact(1.0), Goal::Faster(2.0));
        let row = row.on_cpus_with(Needs::Sha);
        assert_eq!(row.verdict(WITH), Verdict::Missed);
        assert_eq!(row.verdict(WITHOUT), Verdict::NotHere(Needs::Sha));
        let text = tables(&[row], WITHOUT);
        assert!(text.contains("0.11x") && text.contains("no SHA-NI here"), "{text}");
    }

    #[test]
    fn a_goal_for_either_instructions_is_judged_where_one_is_and_shown_on_others() {
        let row = |ours| {
            let row = Row::time("burst", Cost::exact(ours), Cost::exact(10.0), Goal::Faster(5.0));
            row.on_cpus_with(Needs::ShaOrAvx512)
        };
        for (sha, avx512) in [(true, true), (true, false), (false, true)] {
            let cpu = Cpu { sha, avx512 };
            assert_eq!(row(2.0).verdict(cpu), Verdict::Met, "{cpu}");
            assert_eq!(row(2.1).verdict(cpu), Verdict::Missed, "{cpu}");
        }
        let neither = Cpu { sha: false, avx512: false };
        assert_eq!(row(2.1).verdict(neither), Verdict::NotHere(Needs::ShaOrAvx512));
        let text = tables(&[row(2.1)], neither);
        assert!(text.contains("4.76x") && text.contains("no SHA-NI or AVX-512 here"), "{text}");
    }
}
