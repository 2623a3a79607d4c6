#!lua flags=allow-oom
-- Silence the bell, or hold it, then list the buckets that may be applied now: in this order no wake-up can be lost.
--
-- KEYS  1 dirty  2 bell, see `enqueue.lua`  3 wake
-- ARGV  1 how many at most  2 prefix of the `big` keys  3 who holds the bell from now on, '' for nobody
--       4 ms until a held bell counts as lost  5 ms until one does whose holder listens
-- Returns a flat list: 1 where the caller holds the bell now, else 0, then bucket, bytes of its largest op of late (0:
-- small) …, oldest first.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local holder, bell = ARGV[3], ''
if holder == '' then
  redis.call('DEL', KEYS[2])
else
  bell = redis.call('MGET', KEYS[2])[1] or ''
  if bell == '' or bell == '1' or string.sub(bell, 3) == holder then
    redis.call('SET', KEYS[2], 'h ' .. holder, 'PX', ARGV[4])
    redis.call('DEL', KEYS[3])
    bell = 'h ' .. holder
  end
end
local held = holder ~= '' and bell == 'h ' .. holder
local buckets, bigs, reply = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1]), {}, { held and 1 or 0 }
for i = #buckets, 1, -1 do
  local n = string.match(buckets[i], '^%d+$') and tonumber(buckets[i])  -- a piece's number is its bucket's modulo 2048
  if not n or n >= 2 ^ 31 or n % 2048 > 1024 then  -- nobody of ours has added it
    redis.call('ZREM', KEYS[1], buckets[i])
    table.remove(buckets, i)
  end
end
if #buckets == 0 then
  if held then redis.call('SET', KEYS[2], 'l ' .. holder, 'PX', ARGV[5]) end
  return reply
end
for i, bucket in ipairs(buckets) do bigs[i] = ARGV[2] .. bucket % 2048 end
bigs = redis.call('MGET', unpack(bigs))
for i, bucket in ipairs(buckets) do
  reply[2 * i] = bucket
  reply[2 * i + 1] = bigs[i] or '0'
end
return reply
