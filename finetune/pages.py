"""Renders the packaged templates. Everything that reaches an HTML page is escaped."""

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(template: str, **values: object) -> str:
    """Fills `finetune/templates/<template>`; an unknown name in a template is an error."""
    environment = Environment(
        loader=PackageLoader("finetune"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = lambda value, digits=1: "–" if value is None else f"{value:.{digits}f}"
    environment.filters["widest"] = lambda interval: max(map(abs, interval))
    return environment.get_template(template).render(**values)
