"""The closed list of reasons for which an input does not become a sample, and the errors that carry them."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """A reason's value is what stands in ``rejected/*.parquet``; ``explanation`` says it in a line."""

    explanation: str

    def __new__(cls, value: str, explanation: str) -> Reason:
        member = str.__new__(cls, value)
        member._value_ = value
        member.explanation = explanation
        return member

    # the bytes
    EMPTY = "empty", "no bytes at all"
    TOO_FEW_BYTES = "too_few_bytes", "smaller than the least number of bytes asked for"
    TOO_LARGE = "too_large", "more bytes than allowed"
    NOT_AN_IMAGE = "not_an_image", "the content is of no image format, whatever the name or the header says"
    NOT_MEDIA = "not_media", "the content is of no video or sound, whatever the name or the header says"
    UNSUPPORTED_FORMAT = "unsupported_format", "of a format that is not decoded"
    # the image, the video or the sound
    TRUNCATED = "truncated", "it ends before it is complete"
    CORRUPT = "corrupt", "its data is damaged"
    NO_VIDEO = "no_video", "no video in it; a cover picture is none"
    NO_SOUND = "no_sound", "no sound in it"
    TOO_SHORT = "too_short", "fewer seconds than the least asked for"
    NO_MOTION = "no_motion", "nothing in it moves apart from the camera and can be followed"
    TOO_MUCH_MOTION = "too_much_motion", "nearly all of it moves, as a camera in a turmoil, and nothing can be followed"
    TOO_MANY_SECONDS = "too_many_seconds", "more seconds than allowed, by what is displayed or heard, not by the header"
    TOO_MANY_PIXELS = "too_many_pixels", "more pixels than allowed, by its header; not decoded"
    TOO_LONG = "too_long", "a side of more than 65,500 pixels, which no JPEG can have"
    TOO_SMALL = "too_small", "the shorter side is below the least asked for"
    BAD_ASPECT = "bad_aspect", "longer or narrower than allowed"
    DECODER_CRASH = "decoder_crash", "the worker that decoded it died of it"
    DECODER_TIMEOUT = "decoder_timeout", "the worker that decoded it did not finish in time"
    DECODER_MEMORY = "decoder_memory", "decoding it needs more memory than a worker may have"
    NEEDS_REENCODING = "needs_reencoding", "no JPEG that could be stored as it is, and encoding is switched off"
    DUPLICATE = "duplicate", "the same bytes were stored already"
    # the source
    UNREADABLE = "unreadable", "the file or archive member could not be read"
    UNSAFE_MEMBER = "unsafe_member", "an archive member that is no plain file (link, device, sparse file)"
    DUPLICATE_URL = "duplicate_url", "the same URL stands earlier in the list"
    REVISIT = "revisit", "a WARC record that only points to an earlier one"
    INTERNAL = "internal", "an error of this program; its traceback is in ROOT/errors"
    # the list
    BAD_ROW = "bad_row", "a row of the list that cannot be read as one"
    NO_URL = "no_url", "a row of the list without a URL"
    PASSED_OVER = "passed_over", "records of a web archive that are no images; one row per file, with their number"
    # the download
    BAD_URL = "bad_url", "not a well-formed http or https URL"
    BLOCKED_ADDRESS = "blocked_address", "the host is, or resolves to, an address that is not global"
    BLOCKED_HOST = "blocked_host", "the host or the URL is on the blocklist"
    ROBOTS = "robots", "the site's robots.txt keeps crawlers from this URL"
    OPT_OUT = "opt_out", "the site asks not to be used so (X-Robots-Tag)"
    DNS = "dns", "the host's name does not resolve"
    CONNECT = "connect", "no connection could be made, or it was broken off"
    TIMEOUT = "timeout", "no complete answer in time"
    TLS = "tls", "the certificate or the TLS handshake failed"
    TOO_MANY_REDIRECTS = "too_many_redirects", "more redirects than allowed, or a circle of them"
    HTTP_401_403 = "http_401_403", "the server refuses access (401, 403, 451)"
    HTTP_404_410 = "http_404_410", "the server has no such page (404, 410)"
    HTTP_429 = "http_429", "the server asks for fewer requests, after all retries"
    HTTP_4XX = "http_4xx", "another client error"
    HTTP_5XX = "http_5xx", "a server error, after all retries"
    HTTP_OTHER = "http_other", "a status that is neither success, redirect nor error"
    BAD_RESPONSE = "bad_response", "the answer breaks the HTTP protocol or its content encoding"


class UnfetchedError(Exception):
    """An input whose bytes cannot be had."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class LaterError(Exception):
    """An input that cannot be had now, and is to be asked for again in ``seconds``, after others."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def said(error: BaseException) -> str:
    """What an exception says, or at least its kind."""
    return str(error) or type(error).__name__
