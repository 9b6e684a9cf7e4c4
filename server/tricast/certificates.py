"""The certificate with which a server shows who it is: read from its files, looked at, and exchanged while it serves.

Owns what all connections share of TLS (an ``ssl.SSLContext``), and the rules of whom to show it. Knows nothing of
connections.
"""

import hashlib
import ipaddress
import re
import ssl
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from tricast.config import ServerTlsSection, TlsSection
from tricast.errors import ConfigError, ConfigProblem
from tricast.logs import Logger

#: How PEM begins (RFC 7468 2), with what OpenSSL takes as well: TRUSTED CERTIFICATE, EC PRIVATE KEY and so on.
_CERTIFICATE = re.compile(rb"-----BEGIN [A-Z0-9 ]*CERTIFICATE-----")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")
_NO_CERTIFICATE = "holds no certificate in PEM format"
#: X509_V_FLAG_NO_CHECK_TIME, for which the ssl module has no name (X509_VERIFY_PARAM_set_flags(3)).
_NO_CHECK_TIME = 0x200000
#: While a certificate is near its end, or over, that is told again after this time.
_REMIND_SECONDS = 86400.0
#: Of its life, the last part in which its end may be called near: certificates for six days are renewed daily.
_LAST_PART = 0.25


class Certificate(NamedTuple):
    """What a certificate says.

    Attributes:
        names: the host names and addresses for which it is.
        begins_at: unix seconds.
        expires_at: unix seconds; where the chain behind it ends sooner, of that.
    """

    names: tuple[str, ...]
    begins_at: float
    expires_at: float

    def problem_at(self, now: float) -> str:
        """Why clients would not take it at that time; empty where they would."""
        if now >= self.expires_at:
            return f"expired on {in_words(self.expires_at)}"
        if now < self.begins_at:
            return f"is not valid before {in_words(self.begins_at)}"
        return ""

    def is_for(self, host: str) -> bool:
        """Whether it is for this host name or address (RFC 9525 6.3): a wildcard stands for one label."""
        wanted = _plain(host)
        beyond_first = "*." + wanted.partition(".")[2]
        return any(name in (wanted, beyond_first) for name in map(_plain, self.names))

    def nearing_at(self, warning: float) -> float:
        """The unix seconds from which on its end is near."""
        return self.expires_at - min(warning, (self.expires_at - self.begins_at) * _LAST_PART)


class Encryption(NamedTuple):
    """What connections that begin at the same time share of TLS.

    Attributes:
        context: certificate and key, and what may be negotiated.
        certificate: what the certificate says.
        fingerprint: of all files that it was loaded from.
    """

    context: ssl.SSLContext
    certificate: Certificate
    fingerprint: bytes


def in_words(timestamp: float) -> str:
    """The unix seconds, for people."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def load_encryption(config: TlsSection) -> Encryption | None:
    """What connections share of TLS; None where none is configured.

    Raises:
        ConfigError: the certificate, its key or the authorities cannot be used.
    """
    if not config.certificate:
        return None
    files = _Files()
    chain = files.read(config.certificate, "tls.certificate", _CERTIFICATE, _NO_CERTIFICATE)
    if config.key:
        files.read(config.key, "tls.key", _PRIVATE_KEY, "holds no private key in PEM format")
    elif chain:
        missing = "holds no private key in PEM format, and tls.key names no other file"
        files.read(config.certificate, "tls.certificate", _PRIVATE_KEY, missing)
    client_ca = config.client_ca if isinstance(config, ServerTlsSection) else ""
    if client_ca:
        files.read(client_ca, "tls.client_ca", _CERTIFICATE, _NO_CERTIFICATE)
    files.raise_problems()
    context = _context()
    try:
        context.load_cert_chain(config.certificate, config.key or None, password=_no_password)
    except (OSError, ValueError) as error:
        words = f"the certificate in {config.certificate} cannot be used with its key: {_reason_of(error)}"
        raise _problem("tls.certificate", words) from None
    try:
        certificate = _look_at(context, chain)
    except (OSError, ValueError) as error:
        words = f"the certificate in {config.certificate} is none that clients take: {_reason_of(error)}"
        raise _problem("tls.certificate", words) from None
    if client_ca:
        _ask_clients(context, client_ca)
    return Encryption(context, certificate, files.fingerprint)


class _Files:
    """Files of PEM, and what is wrong with them as such.

    OpenSSL does not say which of several it was, and of many mistakes nothing.
    """

    def __init__(self) -> None:
        self._problems: list[ConfigProblem] = []
        self._digest = hashlib.blake2b()

    def read(self, file: str, key: str, wanted: re.Pattern[bytes], missing: str) -> bytes:
        """The content of the file that the key names; empty where what is wanted is not in it."""
        try:
            content = Path(file).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: no file can have such a name
            missing = getattr(error, "strerror", None) or str(error)
        else:
            self._digest.update(hashlib.blake2b(content).digest())
            if wanted.search(content):
                return content
        self._problems.append(ConfigProblem("configuration", key, f"{file}: {missing}"))
        return b""

    @property
    def fingerprint(self) -> bytes:
        """Of all that was read."""
        return self._digest.digest()

    def raise_problems(self) -> None:
        """Returns if there are none.

        Raises:
            ConfigError: with all of them.
        """
        if self._problems:
            raise ConfigError(self._problems)


def _context() -> ssl.SSLContext:
    """What may be negotiated: Mozilla's intermediate profile, without DHE, which only clients from before 2014 need."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # What has neither forward secrecy nor encryption that authenticates is for clients that nobody has any more.
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    # All of them are good, and the client knows which its processor is quick at.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    # A client that asks for new keys in the middle costs the server more than itself (and TLS 1.3 has no such thing).
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Who offers only other protocols should get an alert (RFC 7301 3.2), for which the ssl module has no means: they
    # are told that nothing was chosen, and are answered in HTTP/1.1 whatever they go on with.
    context.set_alpn_protocols(["http/1.1"])
    return context


def _ask_clients(context: ssl.SSLContext, file: str) -> None:
    """Has clients asked for a certificate: who has none is let in, who has one of somebody else's is not."""
    try:
        context.load_verify_locations(file)
    except (OSError, ValueError) as error:
        raise _problem("tls.client_ca", f"{file}: cannot be used: {_reason_of(error)}") from None
    # What is in the file is trusted by itself, whoever has signed it: an authority that is not at the root, or a
    # client's own certificate.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = ssl.CERT_OPTIONAL


def _look_at(context: ssl.SSLContext, chain: bytes) -> Certificate:
    """Shakes hands in memory, as a client that trusts this very certificate, and returns what that client sees.

    Raises:
        OSError: no client could do that, whomever it trusts.
        ValueError: the certificate makes no sense.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    trusting.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    trusting.load_verify_locations(cadata=_certificates_in(chain))
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(back, there)
    server = context.wrap_bio(there, back, server_side=True)
    while not all([_step(client), _step(server)]):
        pass
    shown = client.getpeercert()
    assert shown is not None
    ends = [shown, *trusting.get_ca_certs()]
    alternatives: Iterable[Sequence[Any]] = shown.get("subjectAltName", ())
    return Certificate(
        tuple(str(name) for kind, name in alternatives if kind in ("DNS", "IP Address")),
        ssl.cert_time_to_seconds(str(shown["notBefore"])),
        min(ssl.cert_time_to_seconds(str(each["notAfter"])) for each in ends),
    )


def _step(side: ssl.SSLObject) -> bool:
    """Returns whether this side has shaken hands."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _certificates_in(pem: bytes) -> str:
    """The certificates alone: beside them may be a key, and comments in any encoding."""
    found = re.findall(_CERTIFICATE.pattern + rb"[^-]*-----END [A-Z0-9 ]*CERTIFICATE-----\n?", pem)
    return b"\n".join(found).decode("ascii")


def _plain(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.rstrip(".").lower()


def _problem(key: str, message: str) -> ConfigError:
    return ConfigError([ConfigProblem("configuration", key, message)])


def _reason_of(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        # There are reasons such as KEY_VALUES_MISMATCH and EE_KEY_TOO_SMALL, but none for what is broken.
        return error.reason.lower().replace("_", " ") if error.reason else "one is broken between BEGIN and END"
    return str(error)


def _no_password() -> str:
    """Called for an encrypted key; OpenSSL would ask on the terminal, where a server has nobody to answer."""
    raise ValueError("the key is encrypted, and a server has nobody to ask for its password")


def successor_of(present: Encryption | None, config: TlsSection, now: float) -> Encryption | None:
    """What is to come after what is there, loaded anew from its files.

    Raises:
        ConfigError: it cannot be used, or clients would not take it though they take the present one.
    """
    following = load_encryption(config)
    if following is not None and present is not None and not present.certificate.problem_at(now):
        problem = following.certificate.problem_at(now)
        if problem:
            raise _problem("tls.certificate", f"the certificate in {config.certificate} {problem}")
    return following


class Keys:
    """The certificate of a server, which can be exchanged while it serves.

    Connections that have begun go on with what they began with. That it is near its end is seen when it is shown.

    Args:
        config: where it is.
        clock: unix seconds.
        logger: told of its end.

    Raises:
        ConfigError: it cannot be used.
    """

    def __init__(self, config: ServerTlsSection, *, clock: Callable[[], float], logger: Logger) -> None:
        self._config = config
        self._clock = clock
        self._logger = logger
        self._look_again_at = 0.0
        found = load_encryption(config)
        assert found is not None, "there is a certificate"
        self._encryption = found
        self._look()

    @property
    def certificate(self) -> Certificate:
        """What the certificate says that is in use."""
        return self._encryption.certificate

    def context(self) -> ssl.SSLContext:
        """What a connection that begins now needs of TLS."""
        if self._clock() >= self._look_again_at:
            self._look()
        return self._encryption.context

    def renew(self, config: ServerTlsSection | None = None) -> None:
        """Uses what is in these files, or those of before, now, for all connections that begin from now on.

        Raises:
            ConfigError: it cannot be used, and then nothing has changed.
        """
        config = config or self._config
        following = successor_of(self._encryption, config, self._clock())
        if following is None:
            raise _problem("tls.certificate", "expected one, where TLS is in use: to end that takes a restart")
        self._config, self._encryption = config, following
        certificate = following.certificate
        self._logger.info(
            "certificate renewed", names=", ".join(certificate.names), expires=in_words(certificate.expires_at)
        )
        self._look()

    def _look(self) -> None:
        """Says when the end is near, or past, and when to look again."""
        now, certificate = self._clock(), self.certificate
        nearing_at = certificate.nearing_at(self._config.expiry_warning)
        if problem := certificate.problem_at(now):
            self._logger.error(f"the certificate {problem}: clients do not take it", file=self._config.certificate)
        elif now >= nearing_at:
            expires = in_words(certificate.expires_at)
            self._logger.warning("the certificate expires soon", expires=expires, file=self._config.certificate)
        self._look_again_at = nearing_at if now < nearing_at and not problem else now + _REMIND_SECONDS


def open_keys(config: ServerTlsSection, *, clock: Callable[[], float], logger: Logger) -> Keys | None:
    """The keys of a server; None where it has no TLS.

    Raises:
        ConfigError: the certificate cannot be used.
    """
    return Keys(config, clock=clock, logger=logger) if config.certificate else None


def check_certificate(config: TlsSection, hosts: Sequence[str], now: float) -> Certificate | None:
    """What the certificate says with which clients are to be satisfied; None where none is configured.

    Args:
        config: where it is.
        hosts: what clients call the server.
        now: unix seconds.

    Raises:
        ConfigError: they would not be, and every reason for that.
    """
    encryption = load_encryption(config)
    if encryption is None:
        return None
    certificate = encryption.certificate
    faults = [certificate.problem_at(now)]
    if not certificate.names:
        faults.append("has no subjectAltName, without which no browser takes it")
    else:
        known = ", ".join(certificate.names)
        faults += [f"is not for {host}, but for {known}" for host in hosts if not certificate.is_for(host)]
    beginning = f"the certificate in {config.certificate}"
    problems = [ConfigProblem("configuration", "tls.certificate", f"{beginning} {fault}") for fault in faults if fault]
    if problems:
        raise ConfigError(problems)
    return certificate
