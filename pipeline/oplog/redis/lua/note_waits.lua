#!lua flags=allow-oom
-- Note why buckets wait, with the time since when each waits for the same.
--
-- KEYS  1 waits  hash  bucket -> "<expires at, ms> <since, ms> <for what> <note>"; expires
-- ARGV  1 ms until the notes expire  then per bucket: bucket, for what, note
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 2, #ARGV, 3 do
  local since, cause = now, ARGV[i + 1]
  local old = redis.call('HGET', KEYS[1], ARGV[i])
  if old then
    local ends, began, before = string.match(old, '^(%d+) (%d+) (%S+) ')
    -- what ends later than it could was noted before the clock was set back
    local left = (ends or now) - now
    if before == cause and left > 0 and left <= tonumber(ARGV[1]) then since = math.min(began + 0, now) end
  end
  redis.call('HSET', KEYS[1], ARGV[i], string.format('%d %d %s %s', now + ARGV[1], since, cause, ARGV[i + 2]))
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
