"""Lua scripts: what must be atomic in Redis. Numbers that must never come twice survive a Redis that
comes back empty because they are at least the seconds since 2025 began."""

from __future__ import annotations

UNIQUE = """
-- KEYS[1] counter. Returns a number larger than any before, also after the counter was lost.
local now = tonumber(redis.call('TIME')[1]) - 1735689600
local last = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
local next = math.max(last + 1, now)
redis.call('SET', KEYS[1], string.format('%d', next))
return next
"""

WRITE_LEASE = """
-- KEYS: lease, index of leases, events, cohort
-- ARGV: json, ttl ms, member, index entry, event text, announce ('1'/'0')
-- Returns the epoch in force (0: none) when written, -1 when a later incarnation of the same worker id holds it.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then
  local ok, record = pcall(cjson.decode, held)
  if ok and type(record) == 'table' and tonumber(record.member or 0) > tonumber(ARGV[3]) then return -1 end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SADD', KEYS[2], ARGV[4])
if not held or ARGV[6] == '1' then redis.call('PUBLISH', KEYS[3], ARGV[5]) end
local cohort = redis.call('GET', KEYS[4])
return cohort and tonumber(string.match(cohort, '"epoch":%s*(%d+)')) or 0
"""

DELETE_LEASE = """
-- KEYS: lease, index, events. ARGV: member, index entry, event text
local held = redis.call('GET', KEYS[1])
if not held then return 0 end
local ok, record = pcall(cjson.decode, held)
if ok and type(record) == 'table' and tonumber(record.member or 0) ~= tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[2], ARGV[2])
redis.call('PUBLISH', KEYS[3], ARGV[3])
return 1
"""

PRUNE_INDEX = """
-- KEYS: index, then one lease key per entry. ARGV: the entries. Forgets those whose lease is gone.
for i, entry in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[i + 1]) == 0 then redis.call('SREM', KEYS[1], entry) end
end
return 1
"""

ACQUIRE_LEADER = """
-- KEYS: leader, token counter. ARGV: worker id, ttl ms
-- Returns a new fencing token, 0 when someone is in office.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local now = tonumber(redis.call('TIME')[1]) - 1735689600
local token = math.max((tonumber(redis.call('GET', KEYS[2]) or '0') or 0) + 1, now)
redis.call('SET', KEYS[2], string.format('%d', token))
redis.call('SET', KEYS[1], string.format('%d ', token) .. ARGV[1], 'PX', ARGV[2])
return token
"""

RENEW_LEADER = """
-- KEYS: leader. ARGV: value, ttl ms. Returns 1 while still in office.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

LOOK = """
-- KEYS: leader, cohort, index of leases. ARGV: value of the office, ttl ms, prefix of the leases' keys
-- Renews the office. Returns {0} when it is lost, else {1, cohort, then per lease: entry, json, ms to live}.
-- Forgets leases that are gone.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {0} end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local seen = {1, redis.call('GET', KEYS[2])}
for _, entry in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local json = redis.call('GET', ARGV[3] .. entry)
  if json then
    seen[#seen + 1] = entry
    seen[#seen + 1] = json
    seen[#seen + 1] = redis.call('PTTL', ARGV[3] .. entry)
  else
    redis.call('SREM', KEYS[3], entry)
  end
end
return seen
"""

RESIGN_LEADER = """
-- KEYS: leader, events. ARGV: value of the office, event text
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', KEYS[2], ARGV[2])
return 1
"""

FREE_OFFICE = """
-- KEYS: leader, events. ARGV: worker id that is dead, event text.
-- Whoever held the office by this name: were it alive, its next write would be refused, and it would take it again.
local held = redis.call('GET', KEYS[1])
if not held or string.match(held, '^%d+ (.*)$') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', KEYS[2], ARGV[2])
return 1
"""

NEXT_EPOCH = """
-- KEYS: epoch counter. ARGV: floor (the largest epoch known to run). Returns floor + 1 or more, never twice.
local last = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
local next = math.max(last, tonumber(ARGV[1])) + 1
redis.call('SET', KEYS[1], string.format('%d', next))
return next
"""

PUBLISH_COHORT = """
-- KEYS: leader, cohort, layout, list of layout versions, events, epoch counter
-- ARGV: token, cohort json, epoch, layout json, layout version, event text, prefix of layout keys,
--   layouts kept
-- Returns 1; 0 when the token is not the one in office; -1 when a later epoch is published already.
local leader = redis.call('GET', KEYS[1])
if not leader or string.match(leader, '^(%d+) ') ~= ARGV[1] then return 0 end
local held = redis.call('GET', KEYS[2])
if held then
  local ok, record = pcall(cjson.decode, held)
  if ok and type(record) == 'table' and (tonumber(record.epoch) or 0) > tonumber(ARGV[3]) then return -1 end
end
if redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('RPUSH', KEYS[4], ARGV[5])
  while redis.call('LLEN', KEYS[4]) > tonumber(ARGV[8]) do
    redis.call('DEL', ARGV[7] .. redis.call('LPOP', KEYS[4]))
  end
end
redis.call('SET', KEYS[3], ARGV[4])
redis.call('SET', KEYS[2], ARGV[2])
if (tonumber(redis.call('GET', KEYS[6]) or '0') or 0) < tonumber(ARGV[3]) then
  redis.call('SET', KEYS[6], ARGV[3])
end
redis.call('PUBLISH', KEYS[5], ARGV[6])
return 1
"""

READ_STATS = """
-- KEYS: statistics streams; ARGV[1]: least entry id. One string each: a reply of thousands of small ones costs the
-- reader a hundred times as much.
local found = {}
for i, key in ipairs(KEYS) do
    found[i] = cjson.encode(redis.call('XRANGE', key, ARGV[1], '+'))
end
return found
"""
