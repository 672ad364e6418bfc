//! The status as one HTML page that needs nothing else: works without script, on a phone, by day and night.
//!
//! Must never let a text become markup: `Html` takes markup only as a literal of this file.

use std::fmt::{Display, Write};
use std::net::SocketAddr;

use crate::credit::{Comparison, Verdict, for_display};
use crate::declarator::{PoolState, PoolView, Switch, WorkView};
use crate::limits::{DEVICE_ROWS_MAX, STATUS_AGE_MAX_S};
use crate::status::json::{fleet, people_read};
use crate::status::words::{self, ago, grouped, shown, span, with_unit};
use crate::status::{Asked, BlockRow, BlockState, DeviceRow, Listen, Status, Whose};
use crate::upstream::Source;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What a browser may do on the page: use the style and the script that stand in it, and fetch from here. The
/// hashes are theirs; a test says the new ones after a change.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; \
    style-src 'sha256-EX3kqTez/NRZfHXhW8yI9om383k8Vd0uw76qt4XCCd0='; \
    script-src 'sha256-8uIbugCsfK8c4JfugWlr7F3QRJxtVT1eZjUBumLt33g='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A device without a share for so long is called quiet: pools and we ask for some shares a minute.
const QUIET_AFTER_S: u32 = 600;

/// Markup in the making.
struct Html(String);

/// Escapes what is written through it.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

impl Html {
    /// Markup.
    fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text.
    fn text(&mut self, text: impl Display) -> &mut Self {
        // Writing to memory does not fail.
        let _ = write!(Escaped(&mut self.0), "{text}");
        self
    }

    /// A cell of a table, `is` naming it where there is no room for a heading.
    fn cell(&mut self, is: &'static str, text: impl Display) -> &mut Self {
        self.raw("<td data-is=\"").raw(is).raw("\">").text(text).raw("</td>")
    }

    /// The same for a number.
    fn number(&mut self, is: &'static str, text: impl Display) -> &mut Self {
        self.raw("<td class=number data-is=\"").raw(is).raw("\">").text(text).raw("</td>")
    }

    /// A text to be taken over into a device's settings.
    fn take(&mut self, name: &'static str, text: impl Display) -> &mut Self {
        self.raw("<dt>").raw(name).raw("<dd><code class=take>").text(text).raw("</code>")
    }
}

/// The page.
#[must_use]
pub fn page(status: &Status, asked: &Asked) -> String {
    let mut html = Html(String::with_capacity(32 * 1024));
    let out = &mut html;
    out.raw("<!doctype html>\n<html lang=en><head><meta charset=utf-8>")
        .raw("<meta name=viewport content=\"width=device-width, initial-scale=1\">")
        .raw("<link rel=icon href=\"data:,\">")
        .raw("<noscript><meta http-equiv=refresh content=15></noscript><title>");
    out.text(with_unit(fleet(status).five_minutes.estimate, "H/s")).text(" · ");
    out.text(words::headline(status))
        .raw("</title><style>")
        .raw(STYLE)
        .raw("</style></head><body>");
    out.raw(
        "<p id=late class=note hidden>The program does not answer. Below is what it said last.</p>",
    );
    out.raw("<main>");
    head(out, status, asked);
    lead(out, status);
    reward(out, status);
    devices(out, status);
    pools(out, status);
    switches(out, status);
    last_block(out, status);
    credit(out, status);
    connect(out, &status.listen, asked);
    out.raw(
        "</main><footer>The same for programs: <a href=\"/api/v1/status\">/api/v1/status</a>, ",
    )
    .raw("<a href=\"/api/v1/devices\">/api/v1/devices</a></footer>");
    out.raw("<script>").raw(SCRIPT).raw("</script></body></html>\n");
    html.0
}

fn head(out: &mut Html, status: &Status, asked: &Asked) {
    out.raw("<header><strong>Job declarator</strong> · ").text(status.network);
    out.raw(" · node ").text(shown(&status.node.name));
    match (&status.view.node_away, status.node.height) {
        (Some(_), _) => out.raw(" <span class=bad>away</span>"),
        (None, Some(height)) => out.raw(" at block ").text(grouped(u64::from(height))),
        (None, None) => out,
    };
    // What a README promises should not look like a fault that was overlooked.
    if status.node.pruned {
        out.raw(", pruned, which will do");
    }
    let runs_s = status.now.saturating_sub(status.started_at);
    out.raw(" · runs for ").text(span(u64::from(runs_s))).raw("</header>");
    if asked.age_s > STATUS_AGE_MAX_S {
        out.raw("<section><p class=bad>The program has come to a stand: what follows is ");
        out.text(span(u64::from(asked.age_s)))
            .raw(" old. Restart it, and look at its log.</section>");
    }
}

/// Whose template, promised or not; how much; what there is to look at.
fn lead(out: &mut Html, status: &Status) {
    let is_promised = status.view.work.as_ref().map(|work| work.is_promised);
    out.raw("<section><h1>").text(words::headline(status)).raw("</h1><p class=");
    out.raw(match is_promised {
        Some(true) => "soft>",
        Some(false) | None => "wait>",
    });
    out.text(words::meaning(status)).raw("</p>");
    let rates = fleet(status);
    if status.devices.iter().any(|device| device.last_share_at.is_some()) {
        let rate = with_unit(rates.five_minutes.estimate, "H/s");
        out.raw("<p class=rate>").text(rate).raw("</p>");
    }
    out.raw("<p class=\"soft small\">");
    match (status.devices.len(), words::band(rates.five_minutes)) {
        (0, _) => out.raw("No device is connected."),
        _ if status.devices.iter().all(|device| device.last_share_at.is_none()) => {
            out.raw("No share yet: too early to say.")
        }
        (_, None) => out.raw("Nothing can be said of the hash rate yet."),
        (_, Some(band)) => {
            out.text(band).raw(", from shares of the last minutes; over an hour ");
            out.text(with_unit(rates.hour.estimate, "H/s"))
        }
    };
    out.raw("</p>");
    if let Some(away) = words::node_away(status) {
        out.raw("<p class=note>").text(away).raw("</p>");
    }
    for warning in &status.warnings {
        out.raw("<p class=note>").text(words::reason(warning)).raw("</p>");
    }
    out.raw("</section>");
}

/// What is being mined and to whom it would go.
fn reward(out: &mut Html, status: &Status) {
    out.raw("<section><h2>If a block is found now</h2>");
    let Some(work) = &status.view.work else {
        out.raw("<p class=soft>Nothing is being mined.</section>");
        return;
    };
    out.raw("<p>It pays ")
        .text(words::btc(work.value_sats))
        .text(reward_means(status, work))
        .raw("</p>");
    out.raw("<table><thead><tr><th>To<th class=number>Part<th class=number>Amount</thead><tbody>");
    // The commitment to witnesses and the like pay nothing.
    for (sats, script) in work.outputs.iter().filter(|(sats, _)| *sats > 0) {
        let to = words::address(script, status.network);
        out.raw("<tr><td><code>");
        out.text(to.unwrap_or_else(|| format!("script {}", shown(&hex::encode(script)))));
        out.raw("</code>");
        out.raw(match status.whose(script) {
            Whose::Yours => "<br><span class=\"good small\">you</span>",
            Whose::Known => "<br><span class=\"soft small\">the pool's, known to you</span>",
            Whose::Unknown => "<br><span class=\"soft small\">not known to you</span>",
        });
        out.raw("</td>");
        out.number("", format_args!("{:.1} %", words::percent(*sats, work.value_sats)));
        out.number("", words::btc(*sats));
    }
    out.raw("</tbody></table><p class=\"soft small\">");
    if let Some(height) = work.height {
        out.raw("Block ").text(grouped(u64::from(height))).raw(", ");
    }
    if let Some(transactions) = work.transactions {
        out.text(grouped(transactions as u64)).raw(" transactions, ");
    }
    let age_s = status.now_ms.saturating_sub(work.since_ms) / 1_000;
    out.raw("on top of <code>").text(people_read(work.tip)).raw("</code>, given out ");
    out.text(span(age_s)).raw(" ago</section>");
}

/// To whom, in a sentence or two.
fn reward_means(status: &Status, work: &WorkView) -> String {
    let (yours, rest) = status.split(&work.outputs);
    match work.source {
        Source::Solo => format!(", {}:", words::shares_of(yours, rest, "others")),
        Source::Pool { pool, .. } => {
            let name = words::quoted(&status.view, pool);
            let shares = words::shares_of(yours, rest, &format!("the pool {name}"));
            let passes_on = match rest {
                0 => "",
                _ => " Whether and how the pool passes its part on is between you and it.",
            };
            format!(": {shares}.{passes_on}")
        }
    }
}

fn devices(out: &mut Html, status: &Status) {
    out.raw("<section><h2>Devices</h2>");
    if status.devices.is_empty() && status.view.work.is_none() {
        out.raw("<p>No device can connect yet: the doors open with the first work, as soon as your node or a ")
            .raw("pool answers.</section>");
        return;
    }
    if status.devices.is_empty() {
        out.raw("<p>No device is connected. Take the settings at the <a href=\"#connect\">end of this page")
            .raw("</a> over into your device; it appears here within seconds.</section>");
        return;
    }
    out.raw("<table><thead><tr><th>Device<th>Hash rate<th>Last share<th class=number>Difficulty")
        .raw("<th class=number>Shares<th>Refused</thead><tbody>");
    for device in status.devices.iter().take(DEVICE_ROWS_MAX) {
        device_row(out, device, status.now);
    }
    out.raw("</tbody></table>");
    if status.devices.len() > DEVICE_ROWS_MAX {
        out.raw("<p class=soft>The first ").text(DEVICE_ROWS_MAX).raw(" of ");
        out.text(status.devices.len()).raw(" are listed.</p>");
    }
    out.raw("</section>");
}

fn device_row(out: &mut Html, device: &DeviceRow, now: u32) {
    let name = if device.name.is_empty() { "(no name)" } else { &device.name };
    out.raw("<tr><td>").text(shown(name)).raw("<br><span class=\"soft small\">");
    for text in [&device.vendor, &device.hardware, &device.firmware] {
        if !text.is_empty() {
            out.text(shown(text)).raw(" ");
        }
    }
    out.raw("· ").text(device.protocol.text()).raw(" · ").text(device.peer.ip());
    out.raw("</span></td><td data-is=\"Hash rate\">");
    let rate = device.hash_rate.five_minutes;
    match (device.last_share_at, words::band(rate)) {
        (None, _) => out.raw("<span class=soft>too early to say</span>"),
        (Some(_), None) => out.text(with_unit(rate.estimate, "H/s")),
        (Some(_), Some(band)) => {
            out.text(with_unit(rate.estimate, "H/s")).raw("<br><span class=\"soft small\">");
            out.text(band).raw("</span>")
        }
    };
    out.raw("</td><td data-is=\"Last share\">");
    let quiet_s = now.saturating_sub(device.last_share_at.unwrap_or(device.connected_at));
    match (device.last_share_at, quiet_s >= QUIET_AFTER_S) {
        (Some(at), false) => out.text(ago(now, at)),
        (None, false) => out.raw("<span class=soft>none yet</span>"),
        (_, true) => {
            let quiet = span(u64::from(quiet_s));
            out.raw("<span class=wait>none for ").text(quiet).raw("</span>")
        }
    };
    out.raw("<br><span class=\"soft small\">connected ").text(ago(now, device.connected_at));
    out.raw("</span></td>");
    out.number("Difficulty", words::difficulty(2f64.powi(i32::from(device.difficulty_log2))));
    out.raw("<td class=number data-is=\"Shares\">").text(grouped(device.accepted));
    if device.best_difficulty > 0.0 {
        out.raw("<br><span class=\"soft small\">best ");
        out.text(words::difficulty(device.best_difficulty)).raw("</span>");
    }
    out.raw("</td><td data-is=\"Refused\">");
    refusals(out, device.refused.iter().map(|(code, shares)| (*code, *shares)));
    out.raw("</td>");
}

/// Each reason with its number, or "none".
fn refusals<'a>(out: &mut Html, refused: impl Iterator<Item = (&'a str, u64)>) {
    let mut is_none = true;
    for (code, shares) in refused.filter(|(_, shares)| *shares > 0) {
        if !std::mem::take(&mut is_none) {
            out.raw("<br>");
        }
        out.text(grouped(shares)).raw(" <span class=\"soft small\">");
        out.text(shown(words::refusal(code))).raw("</span>");
    }
    if is_none {
        out.raw("<span class=soft>none</span>");
    }
}

fn pools(out: &mut Html, status: &Status) {
    out.raw("<section><h2>Pools</h2>");
    if status.view.pools.is_empty() {
        out.raw("<p>None is configured: your devices mine solo.</section>");
        return;
    }
    out.raw("<table><thead><tr><th>Pool<th>State<th class=number>Acknowledged<th>Refused or lost")
        .raw("</thead><tbody>");
    for pool in &status.view.pools {
        pool_row(out, pool, status);
    }
    out.raw("</tbody></table></section>");
}

fn pool_row(out: &mut Html, pool: &PoolView, status: &Status) {
    out.raw("<tr><td>").text(shown(&pool.name)).raw("</td><td><span class=");
    out.raw(match pool.state {
        PoolState::InUse(_) => "good>",
        PoolState::Trying | PoolState::Waiting { .. } => "wait>",
        PoolState::Ready | PoolState::Unused => "soft>",
    });
    out.text(words::pool_state(&pool.state, status.now_ms).1).raw("</span>");
    if let Some((at, why)) = &pool.last_failure {
        out.raw("<br><span class=\"soft small\">");
        out.raw(match pool.state {
            PoolState::InUse(_) | PoolState::Ready => "before that it failed ",
            PoolState::Trying | PoolState::Waiting { .. } | PoolState::Unused => "failed ",
        });
        out.text(ago(status.now, *at)).raw(": ");
        out.text(words::reason(why)).raw("</span>");
    }
    out.raw("</td><td class=number data-is=\"Acknowledged\">");
    let tally = &pool.tally;
    match tally.sent {
        0 => out.raw("<span class=soft>nothing sent</span>"),
        sent => out.text(grouped(tally.acknowledged)).raw(" of ").text(grouped(sent)),
    };
    if tally.waiting > 0 {
        out.raw("<br><span class=\"soft small\">")
            .text(grouped(tally.waiting))
            .raw(" waiting</span>");
    }
    out.raw("</td><td data-is=\"Refused or lost\">");
    let refused = tally.refused.iter().map(|(code, shares)| (code.as_str(), *shares));
    let lost = tally.lost.iter().map(|(loss, shares)| (loss.text(), *shares));
    refusals(out, refused.chain(lost));
    out.raw("</td>");
}

fn switches(out: &mut Html, status: &Status) {
    out.raw("<section><h2>What was switched</h2>");
    if status.view.switches.is_empty() {
        out.raw("<p class=soft>Nothing since the program started.</section>");
        return;
    }
    out.raw("<table><thead><tr><th>When<th>To<th>Why<th>Cost</thead><tbody>");
    for switch in status.view.switches.iter().rev() {
        out.raw("<tr>").cell("", ago(status.now, switch.at));
        out.raw("<td data-is=\"To\">").text(words::source(&status.view, switch.to));
        out.raw("<br><span class=\"soft small\">from ");
        out.text(words::source(&status.view, switch.from)).raw("</span></td>");
        out.cell("Why", words::reason(&switch.reason));
        out.cell("Cost", cost(switch));
    }
    out.raw("</tbody></table></section>");
}

/// How long the devices may have worked for nobody.
fn cost(switch: &Switch) -> String {
    if switch.idle_ms == 0 {
        return "nothing".to_owned();
    }
    let time = match switch.idle_ms {
        ms @ 0..=999 => format!("{ms} ms"),
        ms => format!("{:.1} s", ms as f64 / 1_000.0),
    };
    format!("up to {time}, {} of work", with_unit(switch.idle_hashes, "H"))
}

fn last_block(out: &mut Html, status: &Status) {
    out.raw("<section><h2>Last block of yours</h2>");
    let Some(block) = &status.last_block else {
        out.raw("<p class=soft>None since the program started, and none of before is in its data folder.</section>");
        return;
    };
    let BlockRow { hash, height, at, finder, outputs, state } = block;
    out.raw("<p>");
    match height {
        Some(height) => out.raw("Block ").text(grouped(u64::from(*height))),
        None => out.raw("A block of the pool's"),
    };
    out.raw(", found ").text(ago(status.now, *at));
    if !finder.is_empty() {
        out.raw(" by ").text(shown(finder));
    }
    out.raw(": ");
    match state {
        BlockState::Sending => out.raw("<span class=wait>being sent to your node and the pool</span>"),
        BlockState::Accepted => out.raw("<span class=good>accepted by your node</span>"),
        BlockState::LeftToPool => {
            out.raw("sent to the pool, which alone has its transactions; your node will see it by the network")
        }
        BlockState::Refused(why) => {
            out.raw("<span class=bad>refused by your node: ").text(words::reason(why)).raw("</span>")
        }
        BlockState::Answered => {
            out.raw("your node answered before this program was started; what, is in the log of that time")
        }
    };
    out.raw("</p>");
    let (yours, rest) = status.split(outputs);
    if yours.saturating_add(rest) > 0 {
        out.raw("<p>It pays ").text(words::btc(yours.saturating_add(rest))).raw(": ");
        out.text(words::shares_of(yours, rest, payee(status, outputs))).raw(".</p>");
    }
    out.raw("<p class=\"soft small\"><code>").text(people_read(*hash)).raw("</code></section>");
}

/// Who has what is not the owner's.
fn payee<'a>(status: &Status, outputs: &[(u64, Vec<u8>)]) -> &'a str {
    let mut others =
        outputs.iter().filter(|(sats, script)| *sats > 0 && *script != status.payout_script);
    let are_known = others.all(|(_, script)| status.whose(script) == Whose::Known);
    if are_known { "the pool, at addresses that you know" } else { "the pool or whom it names" }
}

fn credit(out: &mut Html, status: &Status) {
    out.raw("<section><h2>Your count and the pool's</h2>");
    let tally = &status.view.tally;
    out.raw("<p>Your devices found ").text(grouped(tally.shares)).raw(" good shares, ");
    out.text(with_unit(for_display(tally.work), "H")).raw(" of work");
    if tally.solo_shares > 0 {
        out.raw(", of which ").text(grouped(tally.solo_shares)).raw(" were solo");
    }
    out.raw(".</p>");
    if status.credit.is_empty() {
        out.raw(
            "<p class=soft>No pool's page is asked what it shows for you: name its address in the ",
        )
        .raw("configuration to have both counts held against each other.</section>");
        return;
    }
    out.raw("<table><thead><tr><th>Pool<th>Since<th class=number>It acknowledged")
        .raw("<th class=number>It shows<th class=number>It credits<th>So</thead><tbody>");
    for comparison in &status.credit {
        let Comparison { pool, since, own_work, pool_work, pool_credit, .. } = comparison;
        out.raw("<tr>").cell("", shown(pool)).cell("Since", ago(status.now, *since));
        out.number("It acknowledged", with_unit(for_display(*own_work), "H"));
        out.number("It shows", with_unit(for_display(*pool_work), "H"));
        let credited = pool_credit.map(|credit| with_unit(for_display(credit), "H"));
        out.number("It credits", credited.unwrap_or_default());
        out.raw("<td>");
        match &comparison.verdict {
            Verdict::Same => out.raw("<span class=good>they agree</span>"),
            Verdict::PoolShowsLess { percent } => {
                let less = format!("the pool shows {percent:.1} % less than it acknowledged");
                out.raw("<span class=bad>").text(less).raw("</span>")
            }
            Verdict::PoolCreditsLess { percent } => {
                let less = format!("the pool credits {percent:.1} % less than the work it shows");
                out.raw("<span class=bad>")
                    .text(less)
                    .raw("</span>, as it may where your templates ")
                    .raw("have fewer fees than its own")
            }
            Verdict::Unknown(why) => out.raw("<span class=soft>").text(why).raw("</span>"),
        };
        out.raw("</td>");
    }
    out.raw("</tbody></table></section>");
}

fn connect(out: &mut Html, listen: &Listen, asked: &Asked) {
    out.raw("<section id=connect><h2>Connect a device</h2><dl>");
    let host = device_host(listen, listen.sv2, asked);
    let placeholder = "the address of this computer in your network";
    let shown_host = host.as_deref().unwrap_or(placeholder);
    out.take("Host", shown_host).take("Port", listen.sv2.port());
    out.raw(
        "<dt>User<dd>any name, it only tells your devices apart: <code class=take>bitaxe</code>",
    );
    out.take("Authority key", &listen.authority_key);
    if let Some(sv1) = listen.sv1 {
        let host = device_host(listen, sv1, asked);
        let host = host.unwrap_or_else(|| "this-computer".to_owned());
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        out.take("Stratum V1", format_args!("stratum+tcp://{host}:{}", sv1.port()));
    }
    out.raw("</dl><p class=\"soft small\">Devices with Stratum V2 (AxeOS, NerdQAxe+) take the first four, ")
        .raw("without anything before the host. With the authority key the device knows that it speaks to ")
        .raw("this computer and nobody else.");
    if listen.sv1.is_some() {
        out.raw(" Others take the last line, the same user and any password.");
    }
    let is_name = host.as_deref().is_some_and(|host| host.ends_with(".local"));
    if is_name {
        out.raw(" If a device does not find the name, give it the IP address.");
    }
    out.raw("</p>");
    if listen.sv2.ip().is_loopback() {
        out.raw("<p class=note>Only programs on this computer can connect: the port is bound to ");
        out.text(listen.sv2.ip()).raw(".</p>");
    }
    out.raw("</section>");
}

/// What a device is to dial: what the owner says, else what the port is bound to, else the address by which
/// the page was reached. `None` where that is no address for others.
fn device_host(listen: &Listen, bound: SocketAddr, asked: &Asked) -> Option<String> {
    if let Some(host) = &listen.host {
        return Some(shown(host));
    }
    if !bound.ip().is_unspecified() {
        return Some(bound.ip().to_string());
    }
    let host = asked.host.as_deref()?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_here = bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    (!is_here).then(|| shown(bare))
}
