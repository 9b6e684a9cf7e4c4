"""What is done in Redis in one step: Lua scripts, which nobody else's commands come between.

The keys of a shard, all in one slot:

- ``log``, the stream. An entry is an event, with the fields ``n``, ``t``, ``y`` (not where the type is the usual one)
  and ``d``; or a mark, with ``n``, ``m`` and ``f``: what was before it is in doubt. ``n`` counts the entries, so that
  one that is missing is noticed. ``f`` is the entry up to which those who come from what was lost have what is here.
- ``meta``, a hash: ``id``, by which a log is known that began anew; ``start``, the newest mark; ``n`` and ``last`` of
  the newest entry; ``forgotten``, the greatest score that was dropped from the topics; ``run``, of which server it is.
- ``topics``, a sorted set: each topic with its newest event, as a score (see ``score_of``).
- ``keys`` and ``keyed``, the idempotency keys: what each of them stands for, and when it was first used.
"""

from collections.abc import Sequence
from hashlib import sha1
from typing import Any

from coredis import Redis
from coredis.exceptions import NoScriptError

from tricast.event import EventId

#: Topics whose newest events are remembered one by one.
_MAX_TOPICS = 100_000
#: Names that one look returns at most.
MAX_NEWER = 1000
#: Entries that are looked at in one step; any of them may have a megabyte.
READ_STEP = 16
#: Idempotency keys that are forgotten at a time.
_MAX_FORGOTTEN = 100
#: A float has 53 bits: milliseconds until the year 2248, and ten bits for the counter.
_COUNTERS = 1024


class Script:
    """A script, which Redis knows by its digest from the first time on."""

    def __init__(self, text: str) -> None:
        self._text = text.encode()
        self._digest = sha1(self._text).hexdigest()  # noqa: S324 - Redis calls it by that

    async def run(self, redis: Redis[bytes], keys: Sequence[bytes], arguments: Sequence[bytes | str | int]) -> Any:
        """Runs it and returns its answer."""
        try:
            return await redis.evalsha(self._digest, keys, arguments)
        except NoScriptError:
            return await redis.eval(self._text, keys, arguments)


def score_of(position: EventId) -> float:
    """A number that is less than the score of each event behind the position, and of no other one where it fits."""
    return position.ms + min(position.counter, _COUNTERS - 1.5) / _COUNTERS


#: What needs no keys.
FUNCTIONS = """
local function parse(id)
  local ms, counter = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(counter)
end

local function is_before(one, other)
  local ms, counter = parse(one)
  local other_ms, other_counter = parse(other)
  return ms < other_ms or (ms == other_ms and counter < other_counter)
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

_COMMON = (
    FUNCTIONS
    + """
local log, meta, topics, keys, keyed = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]

local function first_entry()
  return redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
end
"""
)

#: The idempotency keys, in what ``keys`` and ``keyed`` name, as of ``now``. ``find`` returns the first ids of what a
#: key stands for, one for each shard; none if that was something else, and nil if the key is not known.
IDEMPOTENCE = (
    f"local MAX_FORGOTTEN = {_MAX_FORGOTTEN}"
    """
local function find(key, fingerprint, window)
  local used = redis.call('HGET', keys, key)
  if not used then return nil end
  local firsts, known = string.match(used, '^(%S+) (%S*)$')
  if tonumber(string.match(firsts, '^%d+')) < now - window then return nil end
  local found = {}
  if known == fingerprint then
    for first in string.gmatch(firsts, '[^,]+') do found[#found + 1] = first end
  end
  return found
end

local function forget(old)
  for _, key in ipairs(old) do
    redis.call('HDEL', keys, key)
    redis.call('ZREM', keyed, key)
  end
end

local function remember(key, fingerprint, window, max_keys, firsts)
  redis.call('HSET', keys, key, table.concat(firsts, ',') .. ' ' .. fingerprint)
  redis.call('ZADD', keyed, string.match(firsts[1], '^%d+'), key)
  local oldest = string.format('(%.0f', now - window)
  forget(redis.call('ZRANGEBYSCORE', keyed, '-inf', oldest, 'LIMIT', 0, MAX_FORGOTTEN))
  local surplus = redis.call('ZCARD', keyed) - max_keys
  if surplus > 0 then forget(redis.call('ZRANGE', keyed, 0, surplus - 1)) end
end
"""
)

#: Opens the log, or finds out whether it is the one that was known. Where there is none it begins one; where the newest
#: entry that somebody knows is missing, it says so to all by a mark. So it does where the server has taken over from
#: another one: who was told of what it lacks may come to it later, or never.
#: ARGV: the id of a new log; the id, and the newest entry with its number, of the one that was known, if any; the id of
#: the server's run, and 1 if it may lack what was acknowledged by another one; then other entries that are known, the
#: newest first, and the last mark.
#: Returns id, start, number and last, and 1 if everything behind what was known can be read on from there.
BEGIN = Script(
    _COMMON
    + """
local fresh, known_log, known, known_n = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local run, may_lack = ARGV[5], ARGV[6] == '1'
local state = redis.call('HMGET', meta, 'id', 'start', 'n', 'last', 'run')
local id, start, n, last = state[1], state[2], tonumber(state[3]), state[4]

local top, is_gone = 0, redis.call('EXISTS', log) == 0
if not is_gone then
  local info = redis.call('XINFO', 'STREAM', log)
  for index = 1, #info, 2 do
    if info[index] == 'last-generated-id' then top = parse(info[index + 1]) end
  end
end

local function mark(fork)
  start = string.format('%.0f-0', math.max(now_ms(), top + 1, parse(known) + 1))
  last = start
  redis.call('XADD', log, start, 'n', n, 'm', id, 'f', fork or start)
  redis.call('HSET', meta, 'id', id, 'start', start, 'n', n, 'last', last, 'run', run)
end

local function is_there()
  if known == last then return true end
  local entry = redis.call('XRANGE', log, known, known)[1]
  return entry and entry[2][1] == 'n' and entry[2][2] == known_n
end

if not id or is_gone then
  redis.call('DEL', log, meta, topics, keys, keyed)
  id, n = fresh, 1
  mark()
  return {id, start, n, last, 0}
end
if state[5] ~= run then
  if may_lack then
    n = n + 1
    mark(last)
    return {id, start, n, last, 0}
  end
  redis.call('HSET', meta, 'run', run)
end
if known_log == '' or is_before(known, start) then return {id, start, n, last, 0} end
if known_log == id and not is_before(last, known) then
  if is_there() then return {id, start, n, last, 1} end
  local first = first_entry()
  if not first or is_before(known, first[1]) then return {id, start, n, last, 0} end
end
local fork = start
if known_log == id then
  fork = ARGV[#ARGV]
  for index = 7, #ARGV do
    if redis.call('XRANGE', log, ARGV[index], ARGV[index])[1] then
      fork = ARGV[index]
      break
    end
  end
end
n = n + 1
mark(fork)
return {id, start, n, last, 0}
"""
)

#: Appends batches, to one shard or to several.
#: KEYS: those of each shard.
#: ARGV: how many entries a shard keeps, and the id of each shard's log; then for each batch its key (empty for none)
#: with fingerprint, window in ms and greatest number of keys, and for each shard how many drafts, and for each of these
#: topic, type (empty for the usual one) and data. Each batch has a draft for each shard.
#: Returns 0 where one of the logs is another one by now. Else for each shard number and last, and for each batch its
#: first id in each shard, to which the others are neighbours; they are empty if the key was used for something else.
APPEND = Script(
    _COMMON
    + f"""
local MAX_TOPICS, COUNTERS = {_MAX_TOPICS}, {_COUNTERS}
"""
    + """
local length, now = ARGV[1], now_ms()
local shards, reply = {}, {}
for index = 1, #KEYS / 5 do
  local at = 5 * index - 4
  local state = redis.call('HMGET', KEYS[at + 1], 'id', 'n', 'last')
  if state[1] ~= ARGV[index + 1] or redis.call('EXISTS', KEYS[at]) == 0 then return 0 end
  shards[index] = {
    log = KEYS[at], meta = KEYS[at + 1], topics = KEYS[at + 2], n = tonumber(state[2]), last = state[3],
    before = state[3], newest = {}
  }
end

"""
    + IDEMPOTENCE
    + """
local function add(shard, id, topic, kind, data)
  shard.n = shard.n + 1
  local last
  if kind == '' then
    last = redis.call('XADD', shard.log, 'MAXLEN', '~', length, id, 'n', shard.n, 't', topic, 'd', data)
  else
    last = redis.call('XADD', shard.log, 'MAXLEN', '~', length, id, 'n', shard.n, 't', topic, 'y', kind, 'd', data)
  end
  shard.last, shard.newest[topic] = last, last
end

-- Directly behind the entries: should anything fail then, they are told of all the same.
local function commit()
  for _, shard in ipairs(shards) do redis.call('HSET', shard.meta, 'n', shard.n, 'last', shard.last) end
end

local at = #shards + 2
while ARGV[at] do
  local key, fingerprint, window, max_keys = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local known = key ~= '' and find(key, fingerprint, window)
  local firsts = known or {}
  at = at + 4
  for number, shard in ipairs(shards) do
    local id, drafts = '*', at + 1
    at = drafts + 3 * tonumber(ARGV[at])
    if not known then
      for index = drafts, at - 1, 3 do
        add(shard, id, ARGV[index], ARGV[index + 1], ARGV[index + 2])
        if id == '*' then
          firsts[number] = shard.last
          id = string.match(shard.last, '^%d+') .. '-*'
        end
      end
    end
    reply[#reply + 1] = firsts[number] or ''
  end
  if key ~= '' and not known then
    commit()
    remember(key, fingerprint, window, max_keys, firsts)
  end
end
-- Also where every key was known: WAIT counts from what was written over the connection.
commit()

local function score_of(id)
  local ms, counter = parse(id)
  return string.format('%.17g', ms + math.min(counter, COUNTERS - 1) / COUNTERS)
end

local heads = {}
for _, shard in ipairs(shards) do
  if next(shard.newest) and redis.call('EXISTS', shard.topics) == 0 then
    redis.call('HSET', shard.meta, 'forgotten', score_of(shard.before))
  end
  for topic, id in pairs(shard.newest) do
    redis.call('ZADD', shard.topics, score_of(id), topic)
  end
  if next(shard.newest) then
    local surplus = redis.call('ZCARD', shard.topics) - MAX_TOPICS
    if surplus > 0 then
      local gone = redis.call('ZPOPMIN', shard.topics, surplus)
      redis.call('HSET', shard.meta, 'forgotten', gone[#gone])
    end
  end
  heads[#heads + 1] = shard.n
  heads[#heads + 1] = shard.last
end
return {heads, reply}
"""
)

#: Looks at the log.
#: ARGV: a score; then topics, or none for all.
#: Returns id, start, number, last, the first entry's id (empty where there is none), the score up to which topics were
#: forgotten, and those of the topics whose newest event is behind the score, or some of them where all were asked for.
LOOK = Script(
    _COMMON
    + f"local MAX_NEWER = {MAX_NEWER}"
    + """
local state = redis.call('HMGET', meta, 'id', 'start', 'n', 'last', 'forgotten')
local first = first_entry()
local newer = {}
-- Where all keys are for a cache, each of them may go.
local forgotten = redis.call('EXISTS', topics) == 1 and (state[5] or '0') or 'inf'
if ARGV[2] then
  for index = 2, #ARGV do
    local score = redis.call('ZSCORE', topics, ARGV[index])
    if score and tonumber(score) > tonumber(ARGV[1]) then newer[#newer + 1] = ARGV[index] end
  end
else
  newer = redis.call('ZRANGEBYSCORE', topics, '(' .. ARGV[1], '+inf', 'LIMIT', 0, MAX_NEWER)
end
return {
  state[1] or '', state[2] or '0-0', tonumber(state[3]) or 0, state[4] or '0-0',
  first and first[1] or '', forgotten, newer
}
"""
)

#: Reads entries, as many as have about so many bytes, for among small ones there may be some of a megabyte.
#: ARGV: from where and up to where, as for XRANGE, or for XREVRANGE; how many bytes; and 1 for the latter.
#: Returns entries, and 1 if those are all.
READ = Script(
    _COMMON
    + f"local STEP = {READ_STEP}"
    + """
local from, upto, max_size, command = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1' and 'XREVRANGE' or 'XRANGE'
local found, size = {}, 0
while true do
  local step = redis.call(command, log, from, upto, 'COUNT', STEP)
  for _, entry in ipairs(step) do
    found[#found + 1] = entry
    for _, text in ipairs(entry[2]) do size = size + #text end
    if size >= max_size then return {found, 0} end
  end
  if #step < STEP then return {found, 1} end
  from = '(' .. found[#found][1]
end
"""
)

#: Drops what is too old: exactly, for of a quiet log whole nodes would be never.
#: ARGV: how many milliseconds an entry stays.
TRIM = Script(
    _COMMON
    + """
local oldest = now_ms() - ARGV[1]
return redis.call('XTRIM', log, 'MINID', string.format('%.0f', math.max(oldest, 0)))
"""
)
