"""run/nginx.conf: deploy/nginx.conf, filled in for a stack and the settings of its processes."""

import os
import re
import subprocess
from collections.abc import Iterable

from deploy.config import ROOT, Failure, Stack, find_program
from lockstep.config import Settings

# nginx ends a WebSocket that is silent for this much longer than Lockstep keeps a dead one.
SOCKET_TIMEOUT_MARGIN_S = 3.0
# nginx keeps a connection to a process for this part of the time that the process keeps it.
KEEP_ALIVE_SHARE = 0.8
# One or several names before the rest of a host, as in Lockstep's own check of a wildcard.
SUBDOMAIN = r"[a-z0-9_-]+(\.[a-z0-9_-]+)*"


def nginx_conf(stack: Stack, settings: Settings) -> str:
    """The text of nginx's configuration in front of processes with these settings."""

    def servers(parameters: str) -> str:
        return "\n".join(f'        server "{server_of(name)}" {parameters};' for name in stack.names)

    def server_of(name: str) -> str:
        return f"unix:{stack.socket_of(name)}"

    each_alone = (
        f'    upstream {name} {{\n        server "{server_of(name)}";\n    }}' for name in stack.names
    )
    by_session = "hash $hash_key consistent;" if stack.hash_by_session else ""
    words = {
        # Without it the workers of a root's nginx run as a user who may not read the folder.
        "user": "user root;" if os.getuid() == 0 else "",
        "fds": str(stack.descriptors),
        "servers": servers("max_fails=1 fail_timeout=1s"),
        "backups": "" if by_session else servers("max_fails=0 backup"),
        "socket_servers": servers("max_fails=0"),
        "balancing": by_session,
        "socket_balancing": by_session or "random two least_conn;",
        "each_alone": "\n".join(each_alone),
        "metrics_port": str(stack.metrics_port),
        "listen": f"{stack.listen} backlog=65535" + (" ssl" if stack.certificate else ""),
        "tls": tls_lines(stack),
        "real_ip": real_ip_lines(settings.proxies.networks),
        "origins": origin_map_lines(settings.allowed_origins),
        "vary": "Origin" if settings.allowed_origins - {"*"} else "",
        # A live client says something within the interval and the timeout; the margin spares a late one.
        "socket_timeout": in_ms(settings.ping_interval_s + settings.ping_timeout_s + SOCKET_TIMEOUT_MARGIN_S),
        "keep_alive": in_ms(KEEP_ALIVE_SHARE * settings.keep_alive_s),
    }
    template = (ROOT / "deploy" / "nginx.conf").read_text()
    return re.sub(r"@(\w+)@", lambda found: words[found[1]], template)


def in_ms(seconds: float) -> str:
    """A duration as nginx reads it."""
    return f"{max(1, round(1000 * seconds))}ms"


def tls_lines(stack: Stack) -> str:
    if not stack.certificate:
        return ""
    return (
        f'        ssl_certificate "{stack.certificate}";\n'
        f'        ssl_certificate_key "{stack.key}";\n'
        "        ssl_protocols TLSv1.2 TLSv1.3;\n"
        "        ssl_session_cache shared:tls:10m;"
    )


def real_ip_lines(networks: Iterable[object]) -> str:
    """These make nginx take the caller's address from these proxies, as the processes would."""
    lines = [f"    set_real_ip_from {each};" for each in networks]
    if lines:
        lines += ["    real_ip_header X-Forwarded-For;", "    real_ip_recursive on;"]
    return "\n".join(lines)


def origin_map_lines(origins: Iterable[str]) -> str:
    """The lines of nginx's map from an Origin to the value of Access-Control-Allow-Origin."""
    if "*" in origins:
        return '        default "*";'
    lines = ['        default "";']
    for each in sorted(origins):
        before, wildcard, behind = each.partition("*")
        if wildcard:
            each = f"~^{re.escape(before)}{SUBDOMAIN}{re.escape(behind)}$"
        lines.append(f'        "{each}" $http_origin;')
    return "\n".join(lines)


def write_nginx_conf(stack: Stack, settings: Settings) -> bool:
    """False if it was the same before. Raises Failure with nginx's own words, and then changes nothing."""
    path, new = stack.folder / "nginx.conf", stack.folder / "nginx.conf.new"
    text = nginx_conf(stack, settings)
    if path.exists() and path.read_text() == text:
        new = path
    else:
        new.write_text(text)
    command = [find_program("nginx"), "-t", "-q", "-p", stack.run, "-c", new.name, "-e", "nginx-error.log"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    if checked.returncode:
        lines = [line for line in checked.stderr.splitlines() if "[emerg]" in line] or [
            checked.stderr.strip()
        ]
        raise Failure(f"nginx refuses deploy/nginx.conf: {lines[0]}")
    new.replace(path)
    return new != path
