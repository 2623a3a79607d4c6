#!lua
-- Append one op of one shard: `enqueue.lua` for what nearly every web request sends, without what it does not need.
--
-- KEYS  1 epoch  2 full  3 producer  4 dirty  5 bell  6 log  7 room  8 wake     all as in `enqueue.lua`
-- ARGV  1 epoch  2 producer  3 bucket  4 ms until the bell counts as lost  5 producer seq  6 the op
-- Returns one string:
--       "<1: ring> <epoch> <seq>"  appended, or seen before: where it stands
--       "full <reason>"            nothing was written
--       "room"                     nothing was written: `enqueue.lua` has to measure the memory that is left
--       "no"                       nothing was written: `enqueue.lua` tells why
local call, epoch, bucket, seq = redis.call, ARGV[1], ARGV[3], ARGV[5]

local head = call('MGET', KEYS[1], KEYS[2], KEYS[5], KEYS[7])
local given_out = head[1] or ''
local replid = 'master_replid:' .. string.sub(given_out, #epoch + 2, #epoch + 41)
if string.sub(given_out, 1, #epoch + 1) ~= epoch .. ' ' or not string.find(call('INFO', 'replication'), replid, 1, true) then
  return 'no'
end
if head[2] then return 'full ' .. head[2] end
if not head[4] then return 'room' end

local seen, behind = redis.pcall('HGET', KEYS[3], bucket), -1
if seen then
  local last, last_epoch, last_seq = string.match(type(seen) == 'string' and seen or '', '^(%d+) (%d+) (%d+)$')
  if not last then return 'no' end
  if last_epoch == epoch then
    if last == seq then return '0 ' .. last_epoch .. ' ' .. last_seq end
    behind = last_seq + 0
  end
  if last + 1 ~= seq + 0 then return 'no' end
elseif seq ~= '1' then
  return 'no'
end

local id = redis.pcall('XADD', KEYS[6], epoch .. '-*', 'p', ARGV[2], 's', seq, 'o', ARGV[6])
if type(id) == 'table' then return 'no' end
local at = string.sub(id, #epoch + 2)
if at == '0' or at + 0 <= behind then
  -- the log begins under this epoch, or begins again: then it has forgotten what it took
  local map = #epoch + 42 + bucket
  if at + 0 <= behind or string.sub(given_out, map + 1, map + 1) == '1' then
    call('XDEL', KEYS[6], id)
    call('SET', KEYS[1], epoch .. ' forgot:' .. bucket)
    return 'no'
  end
  call('SETRANGE', KEYS[1], map, '1')
end
call('HSET', KEYS[3], bucket, seq .. ' ' .. epoch .. ' ' .. at)
-- where ops pile up the bucket is dirty already, and no time is needed. ZSCORE would say so, but users may lack the right
local dirty = redis.pcall('ZADD', KEYS[4], 'XX', 'INCR', '0', bucket)
if not dirty or type(dirty) == 'table' then
  local time = call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if type(dirty) == 'table' then call('DEL', KEYS[4]) end  -- no dirty set of ours
  call('ZADD', KEYS[4], 'NX', now, bucket)
end
local bell, ring = head[3], false
if not bell then
  ring = call('SET', KEYS[5], '1', 'NX', 'PX', ARGV[4])
elseif string.sub(bell, 1, 2) == 'l ' then
  if type(redis.pcall('LPUSH', KEYS[8], '1')) == 'table' then  -- no right to, or no list of ours: a message, then
    call('SET', KEYS[5], '1', 'PX', ARGV[4])
    ring = true
  else
    call('PEXPIRE', KEYS[8], ARGV[4])
    call('SET', KEYS[5], 'h ' .. string.sub(bell, 3), 'PX', ARGV[4])
  end
end
return (ring and '1 ' or '0 ') .. epoch .. ' ' .. at
