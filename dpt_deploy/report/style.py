"""The report's style sheet: light and dark, from a phone's width to a desktop's."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #57606c; --line: #d8dde3; --page: #fff; --card: #f5f7f9;
  --good: #1a7f37; --bad: #c4281c; --wait: #8a6100; --good-bar: #4ac26b; --bad-bar: #e5534b; --track: #e3e7ec; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --dim: #9aa5b4; --line: #343b46; --page: #14171c;
  --card: #1c2128; --good: #57c974; --bad: #ff7b72; --wait: #e3b341; --good-bar: #2f8f4a; --bad-bar: #e5534b;
  --track: #2b313a; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
  max-width: 74rem; padding: 1.5rem clamp(.9rem, 3vw, 2rem) 3rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; max-width: 60rem; } .dim, figcaption, .eyebrow { color: var(--dim); }
.eyebrow { font-size: .9rem; } figcaption { font-size: .82rem; } code { font-size: .85em; overflow-wrap: anywhere; }
.verdict { padding: .9rem 1.1rem; border-radius: .5rem; background: var(--card); border-left: .4rem solid; }
.verdict strong { font-size: 1.3rem; display: block; } .verdict p { color: var(--ink); }
.passed { color: var(--good); } .failed { color: var(--bad); } .not-run { color: var(--wait); }
table { border-collapse: collapse; font-size: .88rem; width: 100%; }
th, td { text-align: left; padding: .45rem .8rem .45rem 0; vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); } tbody { border-bottom: 1px solid var(--line); }
.stages th[scope=row] { font-weight: 600; width: 24%; } .stages td.head { width: 25%; }
.stages small { display: block; font-weight: 400; color: var(--dim); overflow-wrap: anywhere; }
.metric { display: grid; grid-template-columns: 4.2rem 1fr; column-gap: .5rem; font-variant-numeric: tabular-nums; }
.metric .dim { font-size: .92em; } .over b { color: var(--bad); } .metric b { font-weight: 600; }
.bar { grid-column: 1 / -1; height: .3rem; border-radius: .15rem; background: var(--track); margin: .1rem 0 .45rem;
  overflow: hidden; } .bar i { display: block; height: 100%; background: var(--good-bar); border-radius: inherit; }
.over .bar i { background: var(--bad-bar); }
.why td { padding-top: 0; color: var(--dim); overflow-wrap: anywhere; } .why ul { margin: 0; padding-left: 1.1rem; }
.why.failed-why td { color: var(--bad); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } svg { width: 100%; height: auto; display: block; }
svg text { font-size: 10.5px; fill: var(--dim); } svg .grid { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .mark { stroke: var(--ink); stroke-width: 2; }
svg .marked { fill: var(--ink); paint-order: stroke; stroke: var(--page); stroke-width: 3px; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem; margin: .6rem 0 0; padding: 0;
  list-style: none; } .legend i { display: inline-block; width: 1.2rem; height: .2rem; margin-right: .4rem;
  vertical-align: middle; }
.maps { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .7rem; margin: .4rem 0 .8rem; }
.maps img { width: 100%; max-height: 24rem; object-fit: contain; object-position: left top; border-radius: .3rem;
  display: block; }
.chain, .chain ul { list-style: none; margin: 0; padding-left: 0; } .chain ul { padding-left: 1.1rem;
  border-left: 2px solid var(--line); margin-left: .3rem; } .chain li { margin: .35rem 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) minmax(0, 1fr); gap: .15rem 1.2rem;
  font-size: .88rem; margin: .3rem 0; } dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
dd dl { margin: 0; } dd ul { margin: 0; padding-left: 1rem; } details summary { cursor: pointer; }
.scroll { overflow-x: auto; } dd table { width: auto; overflow-wrap: normal; }
dd th { font-weight: 400; color: var(--dim); }
dd th, dd td { padding: .1rem 1rem .1rem 0; }
.certificates { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 0 2rem; }
@media (max-width: 46rem) {
  .stages thead { display: none; } .stages tr { display: block; padding: .3rem 0; }
  .stages th, .stages td, .stages th[scope=row], .stages td.head { display: block; width: auto; padding: .15rem 0; }
  .stages td.head:not(:empty)::before { content: attr(data-head); font-weight: 600; display: block; }
  .maps { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin: 0 0 .35rem; } dd dl { padding-left: .8rem; }
}
@media print { body { max-width: none; } .stages tbody, .maps, figure { break-inside: avoid; } }
"""
