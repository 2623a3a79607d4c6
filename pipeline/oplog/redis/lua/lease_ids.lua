#!lua
-- Lease a producer number together with a span of milliseconds in which it may make ids.
--
-- KEYS  1 producers  hash  number -> "<token> <until ms> <lease ends at, server's ms>"
-- ARGV  1 token  2 number held or -1  3 until ms wanted  4 lease ms  5 numbers  6 where to start looking
--       7 span ms  8 the first number: processes and hosts have different ones
-- Returns {number, after ms, until ms}, or {} when all are leased. The span starts behind the number's last span,
-- whoever had it and whatever that machine's clock was, so two holders never make the same id.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function read(number)
  local value = redis.call('HGET', KEYS[1], number)
  if not value then return '', 0, 0 end
  local token, last, ends = string.match(value, '(%S+) (%d+) (%d+)')
  return token, tonumber(last), tonumber(ends)
end
local function grant(number, after)
  local last = math.max(tonumber(ARGV[3]), after + tonumber(ARGV[7]))
  redis.call('HSET', KEYS[1], number, string.format('%s %d %d', ARGV[1], last, now + tonumber(ARGV[4])))
  return { tonumber(number), after, last }
end
if ARGV[2] ~= '-1' then
  local token, last = read(ARGV[2])
  -- still the caller's: the span only grows, so the caller goes on from where it is, not from the span's end
  if token == ARGV[1] then
    local granted = grant(ARGV[2], last)
    return { granted[1], 0, granted[3] }
  end
end
for i = 0, tonumber(ARGV[5]) - 1 do
  local number = tonumber(ARGV[8]) + (tonumber(ARGV[6]) + i) % tonumber(ARGV[5])
  local _, last, ends = read(number)
  if ends < now then return grant(number, last) end
end
return {}
