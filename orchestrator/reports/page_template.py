"""The HTML, the style and the script of a page. They are Python text because the wheel contains no other files."""

STYLE = """
:root { --ink: #22272e; --soft: #5b6470; --line: #e2e6ea; --blue: #0072b2; --orange: #d55e00; --pale: #f5f7f9; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; }
main, header, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 10px; overflow-wrap: anywhere; }
h2 { font-size: 21px; margin: 48px 0 14px; padding-top: 14px; border-top: 1px solid var(--line); }
p { margin: 0 0 14px; max-width: 76ch; overflow-wrap: anywhere; }
.lead { font-size: 18px; }
.warning { border-left: 4px solid var(--orange); background: #fdf3ec; padding: 8px 14px; }
nav { font-size: 14px; margin: 20px 0 0; display: flex; flex-wrap: wrap; gap: 4px 18px; }
a { color: var(--blue); text-decoration: none; }
a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(168px, 1fr)); gap: 12px; margin: 22px 0 0; }
.tile { background: var(--pale); border-radius: 8px; padding: 12px 16px; }
.tile span, .tile small { display: block; color: var(--soft); font-size: 13px; line-height: 1.4; }
.tile b { display: block; font-size: 24px; line-height: 1.35; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 0 0 18px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: 14px; padding-bottom: 6px; }
th, td { padding: 5px 18px 5px 0; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; line-height: 1.3; }
td { white-space: nowrap; }
th.t, td.t { text-align: left; }
td.t { white-space: normal; overflow-wrap: break-word; }
tr.tall td { border-bottom: 0; padding-bottom: 0; }
tr.detail td { color: var(--soft); font-size: 13px; padding-top: 0; }
tr.marked td { font-weight: 600; background: #fdf6e7; }
.bars { display: grid; grid-template-columns: minmax(90px, max-content) 1fr; gap: 6px 14px; margin: 0 0 18px;
  font-size: 14px; align-items: start; line-height: 1.35; }
.bars .label { overflow-wrap: anywhere; }
.bars small { color: var(--soft); display: block; overflow-wrap: anywhere; font-size: 13px; line-height: 1.35; }
.bar { display: flex; align-items: center; gap: 10px; min-width: 0; }
.bar i { background: var(--blue); height: 16px; border-radius: 3px; flex: none; min-width: 2px; }
.bar b { font-weight: 600; white-space: nowrap; font-variant-numeric: tabular-nums; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 0 40px; }
.columns > div { min-width: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 0 0 18px; font-size: 14px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.drawings { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 20px;
  margin: 0 0 18px; align-items: start; }
.drawings svg { width: 100%; height: auto; max-width: 560px; display: block; }
.drawings use:hover, .drawings path:hover { filter: brightness(0.8); }
figure { margin: 0 0 18px; }
img { max-width: 100%; height: auto; image-rendering: pixelated; }
figcaption { color: var(--soft); font-size: 14px; margin-bottom: 6px; }
pre { background: var(--pale); border-radius: 8px; padding: 12px 16px; overflow-x: auto; font: 13px/1.5
  ui-monospace, "DejaVu Sans Mono", Consolas, monospace; margin: 0 0 18px; }
summary { cursor: pointer; color: var(--blue); margin-bottom: 8px; }
footer { color: var(--soft); font-size: 13px; margin: 48px auto 40px; overflow-wrap: anywhere; }
#hint { position: absolute; display: none; pointer-events: none; background: var(--ink); color: #fff; font-size: 13px;
  line-height: 1.4; padding: 4px 9px; border-radius: 5px; max-width: 280px; z-index: 9; }
@media (max-width: 600px) {
  body { font-size: 15px; }
  main, header, footer { padding-left: 14px; padding-right: 14px; }
  header { padding-top: 22px; }
  h1 { font-size: 24px; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 8px; }
  .tile { padding: 9px 12px; }
  .tile b { font-size: 20px; }
  th, td { padding-right: 12px; }
}
@media print {
  @page { margin: 16mm; }
  body { font-size: 11pt; }
  main, header, footer { max-width: none; padding: 0; }
  nav, #hint { display: none !important; }
  h2 { break-after: avoid; margin-top: 24px; }
  .tile, .bar i, tr.marked td, pre { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .drawings, .columns { grid-template-columns: 1fr 1fr; gap: 4mm 8mm; }
  .tiles { grid-template-columns: repeat(5, 1fr); gap: 2mm; }
  .tile { padding: 2mm 3mm; }
  .tile b { font-size: 13pt; }
  p, .drawings > div, figure, tr, .tile, .bars > *, pre { break-inside: avoid; }
  caption, figcaption, p { break-after: avoid; }
  details { display: none; }
  .scroll, pre { overflow: visible; }
  table { font-size: 9pt; }
  th, td { padding-right: 9pt; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  img { max-height: 110mm; }
}
"""

SCRIPT = """
(function () {
  // Titles of points, also where there is no pointer that could rest on them.
  var hint = document.getElementById('hint');
  function show(event) {
    var at = event.target.closest && event.target.closest('.drawings svg *');
    while (at && at.tagName !== 'svg' && !at.querySelector(':scope > title')) at = at.parentNode;
    var title = at && at.tagName !== 'svg' && at.querySelector(':scope > title');
    hint.style.display = title ? 'block' : 'none';
    if (!title) return;
    hint.textContent = title.textContent;
    var width = document.documentElement.clientWidth;
    hint.style.left = Math.max(6, Math.min(event.pageX + 12, width - hint.offsetWidth - 6)) + 'px';
    hint.style.top = (event.pageY + 16) + 'px';
  }
  document.addEventListener('click', show);
})();
"""

TEMPLATE = """{% macro show(block) %}
{% if block.kind == "text" %}
<p{% if block.is_warning %} class="warning"{% endif %}>{{ block.text }}</p>
{% elif block.kind == "table" %}
<div class="scroll"><table>
{% if block.caption %}<caption>{{ block.caption }}</caption>{% endif %}
<thead><tr>
{% for cell in block.head %}<th{% if loop.index0 < block.num_text %} class="t"{% endif %}>{{ cell }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in block.rows %}
<tr class="{% if block.details %}tall{% endif %}{% if loop.index0 == block.marked %} marked{% endif %}">
{% for cell in row %}<td{% if loop.index0 < block.num_text %} class="t"{% endif %}>{{ cell }}</td>{% endfor %}
</tr>
{% if block.details %}
<tr class="detail"><td class="t" colspan="{{ block.head | length }}">{{ block.details[loop.index0] }}</td></tr>
{% endif %}
{% endfor %}
</tbody></table></div>
{% elif block.kind == "bars" %}
<div class="bars">
{% for bar in block.bars %}
<div class="label">{{ bar.label }}</div>
<div><div class="bar"><i style="width: calc((100% - 110px) * {{ '%.4f' % bar.share }})"></i><b>{{ bar.text }}</b></div>
{% if bar.detail %}<small>{{ bar.detail }}</small>{% endif %}</div>
{% endfor %}
</div>
{% elif block.kind == "facts" %}
<dl>
{% for name, value in block.facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}
</dl>
{% elif block.kind == "drawings" %}
<div class="drawings">
{% for drawing in block.drawings %}<div>{{ drawing }}</div>{% endfor %}
</div>
{% elif block.kind == "picture" %}
<figure><figcaption>{{ block.text }}</figcaption><img src="{{ block.address }}" alt="{{ block.text }}"></figure>
{% elif block.kind == "code" %}
{% if block.is_folded %}
<details><summary>{{ block.text }}</summary><pre>{{ block.code }}</pre></details>
{% else %}
<p>{{ block.text }}</p><pre>{{ block.code }}</pre>
{% endif %}
{% endif %}
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
 script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
{% if tiles %}
<div class="tiles">
{% for tile in tiles %}
<div class="tile"><span>{{ tile.label }}</span><b>{{ tile.value }}</b><small>{{ tile.detail }}</small></div>
{% endfor %}
</div>
{% endif %}
<nav>
{% for section in sections %}
<a href="#{{ section.key }}">{{ section.title }}</a>
{% endfor %}
</nav>
</header>
<main>
{% for section in sections %}
<section id="{{ section.key }}">
<h2>{{ section.title }}</h2>
{% for block in section.blocks %}
{% if block.kind == "columns" %}
<div class="columns">{% for inner in block.blocks %}<div>{{ show(inner) }}</div>{% endfor %}</div>
{% else %}
{{ show(block) }}
{% endif %}
{% endfor %}
</section>
{% endfor %}
</main>
<footer>{{ footer }}</footer>
<div id="hint"></div>
<script>{{ script }}</script>
</body>
</html>
"""
