#!lua flags=allow-oom
-- Note what a worker is about to apply, unless an earlier attempt at the same watermark is noted.
--
-- KEYS  1 attempts (hash bucket -> "<watermark> …")
-- ARGV  1 whether to replace earlier notes: 0|1  then per bucket: bucket, note ('': forget)
-- Returns a flat list: bucket, earlier note that stays …
local reply = {}
for i = 2, #ARGV, 2 do
  local noted = redis.call('HGET', KEYS[1], ARGV[i])
  if ARGV[1] == '0' and noted and string.match(noted, '^%S+') == string.match(ARGV[i + 1], '^%S+') then
    reply[#reply + 1] = ARGV[i]
    reply[#reply + 1] = noted
  elseif ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
return reply
