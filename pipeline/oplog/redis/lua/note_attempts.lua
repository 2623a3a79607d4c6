#!lua flags=allow-oom
-- Note what a worker is about to apply, unless an earlier attempt at the same watermark is noted.
--
-- KEYS  1 attempts (hash bucket -> "<watermark> …")
-- ARGV  1 whether to replace earlier notes: 0|1  then per bucket: bucket, note ('': forget)
-- Returns a flat list: bucket, earlier note that stays …
local buckets, put, gone, reply = {}, {}, {}, {}
for i = 2, #ARGV, 2 do buckets[#buckets + 1] = ARGV[i] end
local noted = ARGV[1] == '0' and redis.call('HMGET', KEYS[1], unpack(buckets)) or {}
for i, bucket in ipairs(buckets) do
  local note, earlier = ARGV[2 * i + 1], noted[i]
  if earlier and string.match(earlier, '^%S+') == string.match(note, '^%S+') then
    reply[#reply + 1] = bucket
    reply[#reply + 1] = earlier
  elseif note == '' then
    gone[#gone + 1] = bucket
  else
    put[#put + 1] = bucket
    put[#put + 1] = note
  end
end
if #put > 0 then redis.call('HSET', KEYS[1], unpack(put)) end
if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
return reply
