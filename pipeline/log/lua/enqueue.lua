#!lua
-- Append ops to logs, mark their shards dirty, and take the bells: one round trip, all checks before the first write.
--
-- KEYS  1 epoch of the scope      string  "<epoch> <master_replid>"
--       2 full                    string  a reason; there while the pipeline takes nothing
--       3 producer                hash    bucket -> "<last producer seq> <epoch> <seq>"; expires when idle
--       4 idempotency             string  the first call's receipt, or '' for none
--       5.. per shard: dirty      zset    bucket -> ms from when on it may be applied
--                      bell       string  there while a Celery message for this shard is on its way
--       then per log:  log        stream  entries <epoch>-<dense seq>: p producer, s producer seq, o op
-- ARGV  1 epoch  2 shards  3 producer  4 row id  5 bytes of the largest op if it is large, else 0
--       6 prefix of the keys that hold the bytes of a bucket's largest op of late  7 1: let the producer live on
--       then per log: bucket, first producer seq, count, and the ops themselves
-- Returns one string:
--       "epoch"          the lineage changed: raise the epoch first, nothing was written
--       "full <reason>"  nothing was written
--       "same <receipt>" this idempotency key was seen
--       "ok <a bit per shard: ring it> <per log: code epoch seq>"
--            code 0 appended, first position; 1 seen before, first position then; 2 a hole, seq is the last one seen
-- a message that nobody fetched for a second no longer counts as on its way: it bounds what a lost ring costs
local BELL_MS = 1000
-- a producer's sequences outlive the day after which an idle sender starts anew under another number
local PRODUCER_TTL_MS = 172800000
local IDEMPOTENCY_TTL_MS = 86400000
local BIG_TTL_MS = 86400000

local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
if redis.call('GET', KEYS[1]) ~= ARGV[1] .. ' ' .. replid then return 'epoch' end
local full = redis.call('GET', KEYS[2])
if full then return 'full ' .. full end
if KEYS[4] ~= '' then
  local seen = redis.call('GET', KEYS[4])
  if seen then return 'same ' .. seen end
end

local epoch, shards, producer, big = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local prefix = epoch .. '-*'
local reply, key, at, wrote = {}, 5 + 2 * shards, 8, {}
while at <= #ARGV do
  local bucket, first, count = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local log, seen = KEYS[key], redis.call('HGET', KEYS[3], bucket)
  local last, last_epoch, last_seq = 0, '0', 0
  if seen then
    local a, b, c = string.match(seen, '(%d+) (%d+) (%d+)')
    last, last_epoch, last_seq = tonumber(a), b, tonumber(c)
  end
  if first + count - 1 <= last then
    reply[#reply + 1] = '1 ' .. last_epoch .. ' ' .. string.format('%d', last_seq - (last - first))
  elseif first ~= last + 1 then
    reply[#reply + 1] = '2 0 ' .. string.format('%d', last)
  else
    local id
    for i = 0, count - 1 do
      id = redis.call('XADD', log, prefix, 'p', producer, 's', string.format('%d', first + i), 'o', ARGV[at + 3 + i])
    end
    local seq = tonumber(string.match(id, '%-(%d+)$'))
    redis.call('HSET', KEYS[3], bucket, string.format('%d %s %d', first + count - 1, epoch, seq))
    if big > 0 and big > tonumber(redis.call('GET', ARGV[6] .. bucket) or 0) then
      redis.call('SET', ARGV[6] .. bucket, ARGV[5], 'PX', BIG_TTL_MS)
    end
    reply[#reply + 1] = string.format('0 %s %d', epoch, seq - count + 1)
    wrote[#wrote + 1] = bucket
    if KEYS[4] ~= '' then
      local receipt = string.format('%s %d %s %s %s', epoch, seq, producer, ARGV[at + 1], ARGV[4])
      redis.call('SET', KEYS[4], receipt, 'PX', IDEMPOTENCY_TTL_MS)
    end
  end
  at, key = at + 3 + count, key + 1
end

local bits = ''
if #wrote > 0 and ARGV[7] == '1' then redis.call('PEXPIRE', KEYS[3], PRODUCER_TTL_MS) end
for shard = 0, shards - 1 do
  local ring = false
  if #wrote > 0 then
    local dirty = {}
    for i, bucket in ipairs(wrote) do dirty[2 * i - 1], dirty[2 * i] = now, bucket end
    redis.call('ZADD', KEYS[5 + 2 * shard], 'NX', unpack(dirty))
    ring = redis.call('SET', KEYS[6 + 2 * shard], '1', 'NX', 'PX', BELL_MS)
  end
  bits = bits .. (ring and '1' or '0')
end
return 'ok ' .. bits .. ' ' .. table.concat(reply, ' ')
