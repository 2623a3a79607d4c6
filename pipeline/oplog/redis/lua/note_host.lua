#!lua flags=allow-oom
-- Note what a host says of its spool, with the server's time, and forget hosts that said nothing for long. Runs although
-- memory is full: that is when spools fill.
--
-- KEYS  1 hosts  hash  "<kind> <host>" -> "<ms> <text>"; expires
-- ARGV  1 ms until a host is forgotten  2 most hosts  3 host  4 text
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local at = tonumber(string.match(all[i + 1], '^(%d+) '))
  if not at or now - at > tonumber(ARGV[1]) then redis.call('HDEL', KEYS[1], all[i]) end
end
if redis.call('HLEN', KEYS[1]) < tonumber(ARGV[2]) or redis.call('HGET', KEYS[1], ARGV[3]) then
  redis.call('HSET', KEYS[1], ARGV[3], string.format('%d', now) .. ' ' .. ARGV[4])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
